"""Job files: what is accepted, what is refused and in which words, and the form in which jobs are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from maintd.errors import Problems
from maintd.scheduling.calendar import When
from maintd.scheduling.files import dump, json_schema, load, read_jobs
from maintd.scheduling.job import Job, JobHeader, Retry
from maintd.spec import Duration, Spec


class Bayesian(Spec):
    name: Literal["bayesian"]
    prior_weight: float = Field(default=10, gt=0)
    """How many votes the prior is worth."""


class Mean(Spec):
    name: Literal["mean"]


class Step(Spec):
    after: list[str] = []


class Everything(Spec):
    """A kind with a key of every shape."""

    template: str
    """The directory of the mail's templates."""
    sender: str = Field(default="news@acme.example", alias="from")
    formula: Annotated[Bayesian | Mean, Field(discriminator="name")] = Mean(name="mean")
    steps: dict[str, Step] = {}
    columns: tuple[str, ...] = ()
    number: int | str | None = None
    tags: list[str] = Field(default=[], max_length=2)
    code: str = Field(default="abc", min_length=2, pattern="^[a-z]+$")
    share: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    age: Duration = Field(default=timedelta(days=1), ge=timedelta(seconds=30))
    since: date | None = None


class Nothing(Spec):
    """A kind without keys."""


KINDS: dict[str, type[Spec]] = {"mail": Everything, "cleanup.rows": Nothing}
FULL = """
[weekly-digest]
kind = "mail"
description = "The digest."
when = { cron = "0 8 * * mon", timezone = "Europe/Berlin", within = "6 h" }
timeout = "10 min"
retry = { attempts = 5, wait = "1 min" }
on_lost = "park"
overlap = "queue"
template = "digest"
from = "Acme <news@acme.example>"
formula = { name = "bayesian", prior_weight = 25 }
columns = ["name", "rank"]
number = 7
since = 2026-01-01
[weekly-digest.steps]
first = {}
second = { after = ["first"] }

[tidy]
kind = "cleanup.rows"
when = { every = "15 min", anchor = 2026-01-01T00:05:00Z }
enabled = false
"""


def problems_of(directory: Path) -> list[str]:
    with pytest.raises(Problems) as caught:
        read_jobs(directory, kinds=KINDS)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    (tmp_path / "jobs.toml").write_text(FULL)
    return tmp_path


def test_every_table_of_every_file_is_a_job(jobs_dir: Path) -> None:
    (jobs_dir / "a.toml").write_text('[by-hand]\nkind = "cleanup.rows"\n')
    (jobs_dir / ".hidden.toml").write_text("not read")
    (jobs_dir / "notes.txt").write_text("not read")
    jobs = read_jobs(jobs_dir, kinds=KINDS)
    assert [(job.file, job.name, job.header.kind) for job in jobs] == [
        ("a.toml", "by-hand", "cleanup.rows"),
        ("jobs.toml", "weekly-digest", "mail"),
        ("jobs.toml", "tidy", "cleanup.rows"),
    ]


def test_a_job_has_its_header_and_the_keys_of_its_kind(jobs_dir: Path) -> None:
    digest, tidy = read_jobs(jobs_dir, kinds=KINDS)
    assert digest.header == JobHeader(
        kind="mail",
        description="The digest.",
        when=When(cron="0 8 * * mon", timezone="Europe/Berlin", within=timedelta(hours=6)),
        timeout=timedelta(minutes=10),
        retry=Retry(attempts=5, wait=timedelta(minutes=1)),
        on_lost="park",
        overlap="queue",
    )
    assert digest.spec == Everything(
        template="digest",
        formula=Bayesian(name="bayesian", prior_weight=25.0),
        steps={"first": Step(), "second": Step(after=["first"])},
        columns=("name", "rank"),
        number=7,
        since=date(2026, 1, 1),
        **{"from": "Acme <news@acme.example>"},
    )
    assert tidy.header.when == When(every=timedelta(minutes=15), anchor="2026-01-01T00:05:00Z")
    assert not tidy.header.enabled


def test_a_job_needs_no_more_than_its_kind(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[x]\nkind = "cleanup.rows"\n')
    (job,) = read_jobs(tmp_path, kinds=KINDS)
    assert job.header == JobHeader(kind="cleanup.rows")
    assert job.header.retry.backoff().wait(failures=2) == timedelta(minutes=1)
    assert job.header.retry.backoff().wait(failures=20) == timedelta(hours=1)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbf[x]\r\nkind = "cleanup.rows"\r\n')
    assert [job.name for job in read_jobs(tmp_path, kinds=KINDS)] == ["x"]


# --- directories and files ---


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "gone") == [f"{tmp_path / 'gone'}: there is no such directory"]


def test_a_directory_without_job_files_is_an_error(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == [f"{tmp_path}: there is no *.toml file in this directory"]


def test_files_without_any_job_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("# nothing yet\n")
    assert problems_of(tmp_path) == [f"{tmp_path}: there is no job in any of its files"]


def test_a_syntax_error_names_its_line_and_hides_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[x]\nkind = \n")
    (tmp_path / "b.toml").write_text("[y\n")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "d.toml").mkdir()
    (tmp_path / "e.toml").write_text("x = [")
    told = [
        "a.toml:2: is not valid TOML: ",
        "b.toml:1: is not valid TOML: ",
        f"{tmp_path / 'c.toml'}: is not UTF-8: byte 1 is wrong",
        f"{tmp_path / 'd.toml'}: cannot be read: Is a directory",
        "e.toml: is not valid TOML: ",
    ]
    assert all(map(str.startswith, problems_of(tmp_path), told))
    assert len(problems_of(tmp_path)) == len(told)


def test_a_job_name_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[x]\nkind = "cleanup.rows"\n')
    (tmp_path / "b.toml").write_text('[x]\nkind = "cleanup.rows"\ntimout = 5\n')
    assert problems_of(tmp_path) == [
        "b.toml: [x]: there is a job of this name in a.toml already",
        'b.toml: [x] timout: there is no such key; did you mean "timeout"?',
    ]


def test_what_is_not_a_table_is_not_a_job(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("x = 1\n[[y]]\n")
    assert problems_of(tmp_path) == [
        "a.toml: [x]: must be a table, not a whole number; a job is a table: [x]",
        "a.toml: [y]: must be a table, not a list; a job is a table: [y]",
    ]


@pytest.mark.parametrize("name", ["Digest", "-x", "a_b", "a.b", "é", "x" * 64, "", "x\\n"])
def test_a_name_is_small_letters_digits_and_hyphens(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.toml").write_text(f'["{name}"]\nkind = "cleanup.rows"\n')
    assert [line.partition("]: ")[2] for line in problems_of(tmp_path)] == [
        "is not a name for a job; use up to 63 small letters, digits and hyphens, a letter or digit first"
    ]


@pytest.mark.parametrize("name", ["0", "a-b", "x" * 63])
def test_a_good_name_is_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.toml").write_text(f'["{name}"]\nkind = "cleanup.rows"\n')
    assert [job.name for job in read_jobs(tmp_path, kinds=KINDS)] == [name]


# --- keys ---

BAD_KEYS = {
    # an unknown key and its nearest, at every depth
    "timout = 5": 'timout: there is no such key; did you mean "timeout"?',
    'templat = "x"': 'templat: there is no such key; did you mean "template"?',
    'form = "x"': 'form: there is no such key; did you mean "from"?',
    'sender = "x"': "sender: there is no such key; known: age, ",
    'retry = { wat = "1 s" }': 'retry.wat: there is no such key; did you mean "wait"?',
    'when = { every = "1 h", zone = "x" }': 'when.zone: there is no such key; did you mean "timezone"?',
    'when = { at = "2026-01-01" }': "when.at: there is no such key; known: anchor, cron, every, ",
    "steps = { one = { aftr = [] } }": 'steps.one.aftr: there is no such key; did you mean "after"?',
    'formula = { name = "bayesian", prior_wieght = 5 }': (
        'formula.prior_wieght: there is no such key; did you mean "prior_weight"?'
    ),
    'formula = { name = "mean", prior_weight = 5 }': "formula.prior_weight: there is no such key; known: name",
    # a wrong type
    'enabled = "yes"': "enabled: must be true or false, not a text",
    "description = 5": "description: must be a text, not a whole number",
    "from = true": "from: must be a text, not true or false",
    "retry = 5": "retry: must be a table, not a whole number",
    'retry = { attempts = "5" }': "retry.attempts: must be a whole number, not a text",
    "retry = { attempts = 2.5 }": "retry.attempts: must be a whole number, not a decimal number",
    "steps = []": "steps: must be a table, not a list",
    "steps = { one = { after = [1] } }": "steps.one.after[0]: must be a text, not a whole number",
    'steps = { one = { after = "x" } }': "steps.one.after: must be a list, not a text",
    "columns = 1": "columns: must be a list, not a whole number",
    'share = "half"': "share: must be a number, not a text",
    "number = 0.5": "number: must be a whole number or a text, not a decimal number",
    "timeout = 5": 'timeout: a duration is a text with a unit, such as "15 min"',
    # a wrong value
    'on_lost = "parc"': 'on_lost: must be one of "retry" or "park", not "parc"; did you mean "park"?',
    "overlap = 1": 'overlap: must be one of "skip" or "queue", not 1',
    'timeout = "soon"': 'timeout: "soon" is not a duration; ',
    "retry = { attempts = 0 }": "retry.attempts: must be at least 1",
    "retry = { attempts = 21 }": "retry.attempts: must be at most 20",
    "share = 1.5": "share: must be at most 1",
    "share = nan": "share: must be a finite number",
    'age = "5 s"': "age: must be at least 30 seconds",
    'code = "a"': "code: must have at least 2 characters",
    'code = "A1"': "code: must match the pattern ^[a-z]+$",
    'tags = ["a", "b", "c"]': "tags: must have at most 2 entries, not 3",
    'formula = { name = "bayesian", prior_weight = 0 }': "formula.prior_weight: must be more than 0",
    'formula = { name = "bayes" }': (
        'formula.name: must be one of "bayesian", "mean", not "bayes"; did you mean "bayesian"?'
    ),
    "formula = { prior_weight = 5 }": "formula.name: is missing",
    "when = {}": "when: give exactly one of cron and every",
    'when = { cron = "61 * * * *" }': 'when.cron: "61 * * * *" is not a cron expression: bad minute',
}


@pytest.mark.parametrize("line", BAD_KEYS)
def test_a_bad_key_is_named_in_one_plain_sentence(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.toml").write_text(f'[x]\nkind = "mail"\ntemplate = "x"\n{line}\n')
    (problem,) = problems_of(tmp_path)
    expected = f"a.toml: [x] {BAD_KEYS[line]}"
    assert problem.startswith(expected) if expected.endswith(" ") else problem == expected
    assert "nput" not in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "kind: is missing; known: cleanup.rows, mail"),
        ('kind = "cleanup.row"', 'kind: there is no kind "cleanup.row"; did you mean "cleanup.rows"?'),
        ("kind = 5", "kind: there is no kind 5; known: cleanup.rows, mail"),
        ('kind = "mail"', "template: is missing"),
    ],
)
def test_a_job_has_a_kind_and_what_that_needs(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.toml").write_text(f"[x]\n{text}\n")
    assert problems_of(tmp_path) == [f"a.toml: [x] {problem}"]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[Bad]\nkind = "mial"\ntimeout = 5\n'
        '[x]\nkind = "mail"\nenabled = 1\nfrom = 5\nwhen = { cron = "x", timezone = "Mars" }\n'
    )
    (tmp_path / "b.toml").write_text("x = 1")
    assert [line.partition(";")[0] for line in problems_of(tmp_path)] == [
        "a.toml: [Bad]: is not a name for a job",
        'a.toml: [Bad] kind: there is no kind "mial"',
        'a.toml: [Bad] timeout: a duration is a text with a unit, such as "15 min"',
        "a.toml: [x] enabled: must be true or false, not a whole number",
        'a.toml: [x] when.cron: "x" is not a cron expression: it has five fields, minute, hour, day of month,'
        " month and weekday",
        'a.toml: [x] when.timezone: there is no time zone "Mars"',
        "a.toml: [x] template: is missing",
        "a.toml: [x] from: must be a text, not a whole number",
        "b.toml: [x]: there is a job of this name in a.toml already",
        "b.toml: [x]: must be a table, not a whole number",
    ]


def test_a_kind_may_not_redefine_a_key_of_every_job(jobs_dir: Path) -> None:
    class Greedy(Spec):
        timeout: int = 5

    for use in (lambda kinds: read_jobs(jobs_dir, kinds=kinds), json_schema):
        with pytest.raises(ValueError, match=r"Greedy of kind greedy redefines .*timeout"):
            use({**KINDS, "greedy": Greedy})


# --- stored jobs ---

milliseconds = st.integers(1, 10**9).map(lambda ms: timedelta(milliseconds=ms))
whens = st.one_of(
    st.builds(
        When,
        cron=st.sampled_from(["0 8 * * mon", "*/10 * * * *", "30 0 3 L * *"]),
        timezone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
        gap=st.sampled_from(["shift", "skip"]),
        fold=st.sampled_from(["once", "twice"]),
        missed=st.sampled_from(["once", "skip", "all"]),
        within=st.none() | milliseconds,
    ),
    st.builds(
        When,
        every=st.integers(1, 10**8).map(lambda s: timedelta(seconds=s)),
        anchor=st.datetimes().map(lambda at: at.replace(microsecond=0).isoformat() + "Z"),
    ),
)


def header(when: When | None, overlap: str, **keys: Any) -> JobHeader:
    """A header that may be: what catches up on all of it waits for its turn."""
    in_turn = when is not None and when.missed == "all"
    return JobHeader(when=when, overlap="queue" if in_turn else overlap, **keys)


headers = st.builds(
    header,
    kind=st.just("mail"),
    description=st.text(),
    enabled=st.booleans(),
    when=st.none() | whens,
    timeout=milliseconds,
    retry=st.builds(Retry, attempts=st.integers(1, 20), wait=milliseconds),
    on_lost=st.sampled_from(["retry", "park"]),
    overlap=st.sampled_from(["skip", "queue"]),
)
specs = st.builds(
    lambda sender, **keys: Everything(**keys, **{"from": sender}),
    sender=st.text(),
    template=st.text(),
    formula=st.just(Mean(name="mean"))
    | st.builds(Bayesian, name=st.just("bayesian"), prior_weight=st.floats(0.001, 1e9)),
    steps=st.dictionaries(st.text(), st.builds(Step, after=st.lists(st.text()))),
    columns=st.lists(st.text()).map(tuple),
    number=st.none() | st.integers() | st.text(),
    since=st.none() | st.dates(),
)


@given(headers, specs)
def test_a_stored_job_comes_back_as_it_was(header: JobHeader, spec: Everything) -> None:
    job = Job(name="x", header=header, spec=spec, file="a.toml")
    stored = json.loads(json.dumps(dump(job)))
    assert load("x", stored, kinds=KINDS) == job
    assert dump(load("x", stored, kinds=KINDS)) == stored


def test_a_stored_job_has_every_key_so_that_new_defaults_do_not_change_it(jobs_dir: Path) -> None:
    _, tidy = read_jobs(jobs_dir, kinds=KINDS)
    assert dump(tidy) == {
        "kind": "cleanup.rows",
        "description": "",
        "enabled": False,
        "when": {
            "cron": None,
            "every": "15 min",
            "timezone": "UTC",
            "gap": None,
            "fold": None,
            "anchor": "2026-01-01T00:05:00Z",
            "missed": "once",
            "within": None,
        },
        "timeout": "1 h",
        "retry": {"attempts": 3, "wait": "30 s"},
        "on_lost": "retry",
        "overlap": "skip",
    }


def test_the_implied_policies_for_gap_and_fold_are_stored_too(jobs_dir: Path) -> None:
    digest, _ = read_jobs(jobs_dir, kinds=KINDS)
    assert (dump(digest)["when"]["gap"], dump(digest)["when"]["fold"]) == ("shift", "once")


def test_a_stored_job_of_an_unknown_kind_is_refused_in_words() -> None:
    with pytest.raises(Problems, match=r'^\[x\] kind: there is no kind "rss"; known: cleanup\.rows, mail$'):
        load("x", {"kind": "rss"}, kinds=KINDS)


def test_where_a_job_was_read_is_no_part_of_it(jobs_dir: Path) -> None:
    (jobs_dir / "jobs.toml").rename(jobs_dir / "other.toml")
    for job in read_jobs(jobs_dir, kinds=KINDS):
        assert job.file == "other.toml"
        assert load(job.name, dump(job), kinds=KINDS) == job


# --- the schema for editors ---


def everywhere(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for inner in schema.values():
            yield from everywhere(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from everywhere(inner)


def test_the_schema_has_a_branch_for_each_kind_with_every_key_explained() -> None:
    schema = json_schema(KINDS)
    branches = {
        branch["properties"]["kind"]["const"]: branch for branch in schema["additionalProperties"]["oneOf"]
    }
    assert branches.keys() == KINDS.keys()
    mail = branches["mail"]
    assert mail["required"] == ["kind", "template"]
    assert mail["properties"].keys() == {
        *JobHeader.model_fields,
        *(Everything.model_fields.keys() - {"sender"}),
        "from",
    }
    assert mail["properties"]["template"]["description"] == "The directory of the mail's templates."
    assert mail["properties"]["timeout"]["default"] == "1 h"


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = json_schema(KINDS)
    references = [part["$ref"] for part in everywhere(schema) if isinstance(part.get("$ref"), str)]
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= schema["$defs"].keys()


def test_the_schema_is_valid_and_agrees_with_the_reader(jobs_dir: Path) -> None:
    schema = json_schema(KINDS)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    stored = {job.name: dump(job) for job in read_jobs(jobs_dir, kinds=KINDS)}
    stored["weekly-digest"]["age"] = "1 h"
    validator.validate(stored)
    assert not validator.is_valid({"x": {"kind": "cleanup.rows", "timout": "5 s"}})
    assert not validator.is_valid({"x": {"kind": "mail"}})


def test_catching_up_on_everything_has_to_wait_in_turn() -> None:
    when = When(cron="* * * * *", missed="all")
    with pytest.raises(ValidationError, match='needs overlap = "queue"'):
        JobHeader(kind="mail", when=when)
    assert JobHeader(kind="mail", when=when, overlap="queue").overlap == "queue"


def test_a_dot_in_the_name_of_a_job_is_seen_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text('[old.rows]\nkind = "mail"\n')
    with pytest.raises(Problems, match=r"a dot nests: write \[old-rows\]"):
        read_jobs(tmp_path, kinds=KINDS)
