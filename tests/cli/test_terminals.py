"""Terminals that are narrow, or cannot show every character."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.cli.narrow import fitting
from maintd.cli.output import print_table
from tests.cli.conftest import Project

NARROW = [80, 60]
CAMPAIGN, ADDRESS = "weekly-digest/2026-W47", "ada.byron.of.lovelace@mail.example.org"
MESSAGE_ID = "<0123456789abcdef0123456789abcdef.1@a-rather-long-host.example.org>"
RUN, WHEN = "expired-sessions@2026-11-23T08:00[Europe/Berlin]", "2026-11-20 12:00:00Z"
TABLES = {
    "campaigns": (
        ("id", "campaign", "state", "enrolled", "deliveries", "rows", "duplicates", "started", "finished", "reason"),
        ("1", CAMPAIGN, "finished, 8 uncertain", 1646, "1,638 sent", 1705, 28, WHEN, WHEN, None),
        {"id", "campaign", "state"},
    ),
    "uncertain": (
        ("campaign", "address", "when", "detail", "copies", "message id"),
        (CAMPAIGN, ADDRESS, WHEN, "the connection was lost before the answer was read", 1, MESSAGE_ID),
        {"campaign", "address", "message id"},
    ),
    "runs": (
        ("ID", "RUN", "STATE", "STARTED", "TOOK", "TRIED", "COUNTED", "REASON"),
        ("4711", RUN, "succeeded", WHEN, "4 min 10 s", "1", "removed 11,538, batches 13", None),
        {"ID", "RUN", "STATE"},
    ),
    "timers": (
        ("NEXT", "LEFT", "LAST", "PASSED", "STATE", "JOB", "NOTE"),
        ("Fri 2026-11-20 12:00:00 CET", "5 h", "Thu 2026-11-19", "19 h ago", "waiting", "expired-sessions", "a step"),
        {"STATE", "JOB"},
    ),
    "deliveries": (
        ("campaign", "state", "when", "code", "enhanced", "detail", "copies", "message id"),
        (CAMPAIGN, "rejected", WHEN, 550, "5.1.1", "550 5.1.1 no such user here", 1, MESSAGE_ID),
        {"campaign", "state", "message id"},
    ),
}  # fmt: skip


def columns_of(table: str) -> dict[str, str]:
    """What stands below each heading, its lines joined again."""
    lines = [line for line in table.partition("no room for")[0].splitlines() if line.strip()]
    border = next(place for place, line in enumerate(lines) if "──" in line)
    headings, body = lines[:border], lines[border + 1 :]
    inside = re.finditer(r"\S+(?: \S+)*", headings[0])
    starts = [found.start() for found in inside]
    ends = [*(start - 1 for start in starts[1:]), None]

    def joined(some: list[str], start: int, end: int | None) -> str:
        return "".join(line[start:end].strip() for line in some)

    return {
        joined(headings, start, end).replace(" ", ""): joined(body, start, end)
        for start, end in zip(starts, ends, strict=True)
    }


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("name", TABLES)
def test_a_narrow_terminal_cuts_nothing_that_one_looks_things_up_by(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns, row, needed = TABLES[name]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("LINES", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(columns, [row], empty="")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    found = columns_of(shown)
    for column in needed:
        cell = str(row[columns.index(column)])
        assert found[column.upper().replace(" ", "")].replace(" ", "") == cell.replace(" ", "")
    assert "…" not in shown


def test_a_narrow_terminal_keeps_the_reason_longest_and_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    columns = ("id", "campaign", "state", "rows", "duplicates", "started", "finished", "reason")
    print_table(columns, [("1", CAMPAIGN, "paused", 1705, 28, WHEN, None, "wrong.link")], empty="")
    shown = capsys.readouterr().out
    assert columns_of(shown)["REASON"] == "wrong.link"
    assert "no room for STARTED, FINISHED; --json has all" in shown


def test_what_is_left_over_goes_to_the_narrowest_that_wants_it() -> None:
    assert fitting(["A", "B", "C"], [["a" * 60, "b" * 5, "c " * 30]], width=74, keep=()) == {
        0: 31,
        1: 5,
        2: 30,
    }


@given(
    st.lists(st.text(st.sampled_from("ab c"), max_size=60), min_size=1, max_size=9),
    st.integers(30, 200),
    st.sets(st.integers(0, 8), max_size=3),
)
def test_a_table_fits_and_keeps_the_columns_it_must(cells: list[str], width: int, kept: set[int]) -> None:
    headings = [f"H{place}" for place in range(len(cells))]
    keep = {f"H{place}" for place in kept}
    widths = fitting(headings, [cells], width=width, keep=keep)
    assert kept & set(range(len(cells))) <= widths.keys()
    assert sum(widths.values()) + 3 * len(widths) - 1 <= width
    assert all(each >= 1 for each in widths.values())


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii", "C"],
)
@pytest.mark.parametrize("command", ["timers", "check", "runs"])
def test_a_terminal_that_lacks_a_character_gets_a_plainer_one(
    small_project: Project, locale: dict[str, str], command: str
) -> None:
    small_project.maintd("apply")
    small_project.maintd("run", "title-ratings")
    inherited = {
        name: text for name, text in os.environ.items() if not name.startswith(("MAINTD_", "PYTHON"))
    }
    ended = subprocess.run(
        [sys.executable, "-m", "maintd", command],
        env=inherited | small_project.maintd.environ | locale,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, b"Error" in ended.stderr) == (0, False), ended.stderr
    lines = ended.stdout.decode("latin-1").splitlines()
    assert any(re.search(r" - ", line) for line in lines)
    assert not any("?" in line for line in lines)
