from __future__ import annotations

import re
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from maintd.config.envfile import parse_env_file, scan_env_file


def systemd_values(text: str) -> dict[str, str]:
    """What `EnvironmentFile=` gives a process, as systemd.exec(5) words it.

    Newer manuals end a comment at its line; before version 254 a backslash continued it. The older rule is taken: it is
    the one that loses values.
    """
    values: dict[str, str] = {}
    rest = text
    while rest := rest.lstrip(" \t\r\n"):
        line = re.match(r"[#;](?:\\.|[^\n\\])*|([^=\n]*)(=?)", rest, re.DOTALL)
        assert line
        rest = rest[line.end() :]
        if line[2]:
            value, rest = _systemd_value(rest.lstrip(" \t\r"))
            name = line[1].rstrip(" \t\r")
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and _is_valid(value):
                values[name] = value
    return values


def _systemd_value(rest: str) -> tuple[str, str]:
    """The value at the start of `rest`, and what follows its line."""
    value = ""
    while rest[:1] in ("'", '"'):
        quoted = re.match(r"'([^']*)'?" if rest[0] == "'" else r'"((?:\\.|[^"\\])*)"?', rest, re.DOTALL)
        assert quoted
        escapes = r'\\(["\\`$])|\\\n' if rest[0] == '"' else r"(?!)"
        value += re.sub(escapes, lambda escape: escape[1] or "", quoted[1])
        rest = rest[quoted.end() :].lstrip(" \t\r")
    plain = re.match(r"(?:\\.|[^\n\\])*", rest, re.DOTALL)
    assert plain
    unescaped = re.sub(
        r"\\(.)", lambda escape: escape[1].strip("\n"), plain[0].rstrip(" \t\r"), flags=re.DOTALL
    )
    return value + unescaped, rest[plain.end() + 1 :]


def _is_valid(value: str) -> bool:
    # Unicode noncharacters and NUL make systemd drop an assignment.
    return not re.search("[\0\ufdd0-\ufdef\ufffe\uffff\ufeff]", value)


def accepted(data: bytes) -> dict[str, str] | None:
    file = parse_env_file(data, name="maintd.env")
    return None if file.problems else {name: value.text for name, value in file.values.items()}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=abc # note", {"A": "abc # note"}),
        ("A=a\\b", {"A": "ab"}),
        ('A="x\\ny"', {"A": "x\\ny"}),
        ('A="\\$x"', {"A": "$x"}),
        ("A=${B}-z", {"A": "${B}-z"}),
        ("A=a\\\nB=c", {"A": "aB=c"}),
        ("# a \\\nA=1\nB=2", {"B": "2"}),
        ("; A=1", {}),
        ("A-B=1", {}),
        ("export A=1", {}),
        ("A", {}),
        ("A = \"b c\" \nD='e\nf'", {"A": "b c", "D": "e\nf"}),
        ('A="b"c', {"A": "bc"}),
        ("A=b'c'", {"A": "b'c'"}),
    ],
)  # fmt: skip
def test_the_model_of_systemd_knows_its_rules(text: str, values: dict[str, str]) -> None:
    assert systemd_values(text) == values


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("env") / "maintd.env"


odd = "\r\x0b\x0c\x1c\0\x85\xa0\u2028\u200b\ufeff\ufffeé🐍"
plain = st.sampled_from([*"aZ9 \t#;=:/.-", " #", "  ", "é"])
wild = st.sampled_from([*"aZ9 \t#;=$\\'\"`", *odd, " #", "${A}", "${A:-x}", "\\n", "export "])
quoted = st.sampled_from(["{}", "'{}'", '"{}"'])
texts = st.lists(plain, max_size=6).map("".join) | st.lists(wild, max_size=4).map("".join)
values = st.tuples(quoted, texts).map(lambda pair: pair[0].format(pair[1]))
names = st.sampled_from("ABCDEFGHIJ")
assignments = st.tuples(names, values).map("=".join)
others = st.tuples(st.sampled_from(["#", " #", "\t# ", ";", " ", "\xa0", "A =", "A= ", "a=", ""]), texts).map(
    "".join
)
lines = st.lists(assignments | assignments | others, min_size=4, max_size=12)


@settings(max_examples=200)
@given(lines=lines, ending=st.sampled_from(["", "\n", "\n\n"]))
@example(lines=["A=x # y", 'B="\\n"', 'C="${A}"', "D=x#y", "E= # x"], ending="")
@example(lines=["# one \\", "A=1"], ending="")
@example(lines=["A=1\r", "# two\r", "B='x'"], ending="\n")
@example(lines=["\ufeffA=1"], ending="")
@example(lines=["A=1 \t", "B=", "C=' # '", 'D="\t"', "E=#x"], ending="\n")
def test_what_is_accepted_reads_alike_everywhere(file: Path, lines: list[str], ending: str) -> None:
    # Lines are judged one by one, so that one refused line does not waste the others.
    kept: dict[str, str] = {}
    for number, line in enumerate(lines):
        found = accepted(line.encode())
        if found is not None:
            kept["".join(found) or f"comment {number}"] = line
    text = "\n".join(kept.values()) + ending
    ours = accepted(text.encode())
    assert ours is not None
    event(f"assignments: {len(ours)}")
    file.write_bytes(text.encode())
    assert ours == systemd_values(text)
    assert ours == dotenv_values(file, interpolate=False)
    assert ours == dotenv_values(file, interpolate=True)


@given(data=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    file = parse_env_file(data, name="maintd.env")
    assert all(problem.what and problem.cure for problem in file.problems)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=", ""),
        ("A=x", "x"),
        ("A=x   ", "x"),
        ("A=30 s", "30 s"),
        ("A=#x", "#x"),
        ("A=b#x", "b#x"),
        ("A=b=c", "b=c"),
        ('A="b # c"', "b # c"),
        ('A=" b "', " b "),
        ('A="it\'s"', "it's"),
        ("A='\"Acme\" <news@acme.example>'", '"Acme" <news@acme.example>'),
        ("A=Zoë <z@example.org>", "Zoë <z@example.org>"),
        ("A=postgresql://u:p%24@h:5432/d?sslmode=verify-full&x=y", "postgresql://u:p%24@h:5432/d?sslmode=verify-full&x=y"),
    ],
)  # fmt: skip
def test_ordinary_lines_are_accepted(line: str, value: str) -> None:
    assert accepted(line.encode()) == {"A": value}


@pytest.mark.parametrize(
    "line", ["", "   ", "\t", "#", '# it\'s a "comment" with $ and = \\ inside', "  # indented"]
)
def test_blank_lines_and_comments_say_nothing(line: str) -> None:
    assert accepted(line.encode()) == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("export A=s3cret", "export"),
        ("A=s3cret # note", "comment behind a value"),
        ('A="s3cret" # note', "comment behind a value"),
        ("A=s3\\cret", "backslash"),
        ("A=s3cret\\", "backslash"),
        ("A=s3$cret", "expands"),
        ('A="${s3cret}"', "expands"),
        ("; s3cret", "begins with ;"),
        ("# s3cret \\", "backslash"),
        ("s3cret", "no ="),
        ("a=s3cret", "upper case"),
        ("A-B=s3cret", "the name"),
        ("1A=s3cret", "the name"),
        ("=s3cret", "the name"),
        ("A =s3cret", "beside the ="),
        ("A= s3cret", "beside the ="),
        (" A=s3cret", "begins with a space"),
        ('A="s3cret', "quote"),
        ("A=s3'cret", "quote"),
        ("A='s3'cret", "quote"),
        ('A="s3"cret"', "quote"),
        ("A=s3cret\r", "Unix line ends"),
        ("# s3cret\r", "Unix line ends"),
        ('A="s3cret\\n"', "backslash"),
        ('A="s3$cret"', "expands"),
        ("A='s3\\cret'", "backslash"),
        ("A='${s3cret}'", "expands"),
        ("A=s3\rcret", "U+000D"),
        ("A=s3cret\xa0", "U+00A0"),
        ("\ufeffA=s3cret", "U+FEFF"),
        ("A=s3cret\0", "U+0000"),
    ],
)
def test_what_the_readers_disagree_on_is_refused_without_repeating_it(line: str, reason: str) -> None:
    (problem,) = parse_env_file(line.encode(), name="maintd.env").problems
    assert str(problem).startswith("maintd.env:1: ")
    assert reason in str(problem)
    assert problem.cure
    assert "s3cret" not in str(problem)


def test_all_refused_lines_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "maintd.env"
    file.write_bytes(b"A=1\nexport B=2\n# fine\nC=\xff\nA=3\n")
    problems = scan_env_file(file).problems
    assert [problem.where for problem in problems] == [f"{file}:{line}" for line in (2, 4, 5)]
    assert "after line 1" in problems[2].what


def test_values_know_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "maintd.env"
    file.write_text("# head\n\nA=1\nB='2'\n")
    assert {name: (value.text, value.line) for name, value in scan_env_file(file).values.items()} == {
        "A": ("1", 3),
        "B": ("2", 4),
    }


def test_a_value_does_not_show_in_its_repr() -> None:
    assert "s3cret" not in repr(parse_env_file(b"A=s3cret", name="maintd.env"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    [problem] = scan_env_file(tmp_path / "absent.env").problems
    assert "absent.env: the env file cannot be read: No such file" in str(problem)
