"""What people read is true: pages are current, and what they show exists."""

from __future__ import annotations

import contextlib
import inspect
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.exceptions import NoArgsIsHelpError

from maintd.cli import cli
from maintd.cli.demo import counted, recorded
from maintd.demo.run import Report
from maintd.errors import ExitCode
from maintd.execution.kinds import SPECS
from maintd.scheduling.files import read_jobs
from tests.docs.pages import PAGES, ROOT, calls, carry_out_nothing, command_lines, commands_in_prose, fences

_LINK = re.compile(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")

generated: Callable[[], dict[Path, str]] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("name", sorted(page.name for page in generated()))
def test_a_generated_page_says_what_the_code_says(name: str) -> None:
    path = ROOT / "docs" / name
    assert path.read_text(encoding="utf-8") == generated()[path], "out of date: run `make docs`"


@every_page
def test_every_job_in_a_page_is_one_that_can_be_applied(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(fences(page, "toml")):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "jobs.toml").write_text(block)
        assert read_jobs(directory, kinds=SPECS)


@every_page
def test_every_command_line_in_a_page_exists(page: Path) -> None:
    for arguments in command_lines(page):
        assert carry_out_nothing(arguments)


@every_page
def test_every_command_that_a_sentence_speaks_of_exists(page: Path) -> None:
    for arguments in commands_in_prose(page):
        if arguments:
            with contextlib.suppress(click.MissingParameter, NoArgsIsHelpError):
                assert carry_out_nothing(arguments)


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _commands(inner)


@pytest.mark.parametrize("command", list(_commands(cli)), ids=lambda command: command.name)
def test_every_example_in_a_help_text_exists(command: click.Command) -> None:
    examples = re.findall(r"\x08\nExample:((?:.+\n?)+)", inspect.cleandoc(command.help or ""))
    assert examples, "every command shows an example"
    for arguments in calls("".join(examples)):
        assert carry_out_nothing(arguments)


@every_page
def test_every_link_in_a_page_leads_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in _anchors(file), f"{target}#{anchor} does not exist"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for path, test in _TEST.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"{path} does not exist"
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {test}"


def test_the_exit_codes_are_all_told() -> None:
    told = {int(code) for code in re.findall(r"(\d+) \w", cli.epilog or "")}
    assert told == set(ExitCode)


def test_the_readme_says_what_duplicates_and_uncertain_messages_are_in_one_breath() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    [sentence] = [sentence for sentence in re.split(r"(?<=\.) ", text) if "0 duplicates" in sentence]
    assert "an uncertain message waits for your word" in sentence


def test_the_readme_prints_the_tables_of_the_demo() -> None:
    [printed] = [text for text in fences(ROOT / "README.md", "text") if "a film site with" in text]
    shown = re.findall(r"^(\S[^:•\n]*?) {2,}\S", printed, re.MULTILINE)
    uncertain = int(re.findall(r"^uncertain +(\d+) ", printed, re.MULTILINE)[0])
    report = Report(
        recipients=1, sent=1, uncertain=uncertain, uncertain_addresses=(), mailbox_messages=1, duplicates=0, missing=0,
        unexpected=0, rows_removed=1, titles_rated=1, worker_killed=1, killed_at_fraction=0.3, seconds=1.0, problems=(),
    )  # fmt: skip
    assert shown == [*counted(report), *recorded(report)]
