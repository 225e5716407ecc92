from __future__ import annotations

import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maintd.errors import Problems
from maintd.mail.content.templates import Bundle, MailTemplate, RenderFailed, compile_bundle, read_bundle

DIGEST = {
    "digest/subject.txt": "Your week,\n  {{ name }}\n",
    "digest/body.txt": "Hello {{ name }}\n{% for item in items %}\n* {{ item.title }}\n{% endfor %}\n",
    "digest/body.html": '{% extends "_layout.html" %}{% block body %}<p>Hello {{ name }}</p>{% endblock %}',
    "_layout.html": "<html><body>{% block body %}{% endblock %}</body></html>",
}
FIELDS = {"name": "Ada", "items": [{"title": "one"}, {"title": "two"}]}

SECRET = "4711-secret-4711"

UNDEFINED = "a field is undefined, or has no such attribute (NULL has none)"


def write(directory: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(text, encoding="utf-8")
    return directory


def template(**changes: str) -> MailTemplate:
    """The digest with some of its files replaced, by name without directory and dot: `bodyhtml`."""
    paths = {Path(path).name.replace(".", ""): path for path in DIGEST}
    return compile_bundle(
        Bundle(name="digest", files=DIGEST | {paths.get(key, key): text for key, text in changes.items()})
    )


def problems(directory: Path, name: str = "digest") -> str:
    with pytest.raises(Problems) as refusal:
        read_bundle(directory, name)
    return str(refusal.value)


def test_a_bundle_holds_every_file_that_its_template_reaches(tmp_path: Path) -> None:
    layout = '{% import "_macros.html" as m %}{% block body %}{% endblock %}{% include "_end.html" %}'
    reached = DIGEST | {
        "_layout.html": layout,
        "_macros.html": "",
        "_end.html": '{% include "_deep.html" %}',
        "_deep.html": "",
    }
    write(tmp_path, reached | {"_other.html": "", "other/subject.txt": ""})
    assert read_bundle(tmp_path, "digest").files == reached


def test_the_html_body_is_optional(tmp_path: Path) -> None:
    write(tmp_path, {"plain/subject.txt": "Hi", "plain/body.txt": "Hello"})
    bundle = read_bundle(tmp_path, "plain")
    assert set(bundle.files) == {"plain/subject.txt", "plain/body.txt"}
    assert compile_bundle(bundle).render({}).html is None


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first = read_bundle(write(tmp_path, DIGEST), "digest").digest
    assert first == Bundle(name="digest", files=dict(reversed(DIGEST.items()))).digest
    assert first == "73ec35093481a2fc01affec80d35664adc2f77f195e3e1e8d5a9301e6925628f"
    assert first != Bundle(name="other", files=DIGEST).digest
    assert first != read_bundle(write(tmp_path, {"_layout.html": "changed"}), "digest").digest


def test_line_ends_and_byte_order_marks_of_an_editor_make_no_other_template(tmp_path: Path) -> None:
    digest = read_bundle(write(tmp_path, DIGEST), "digest").digest
    for path, text in DIGEST.items():
        (tmp_path / path).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_bundle(tmp_path, "digest").digest == digest


def test_an_unknown_template_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, DIGEST)
    assert 'there is no template "digets"; did you mean "digest"?' in problems(tmp_path, "digets")
    assert "there is no template" in problems(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", ".", "..", "../digest", "/", "digest/", "digest/old", "x/../digest"])
def test_a_template_name_is_one_directory(tmp_path: Path, name: str) -> None:
    write(tmp_path, DIGEST | {"templates/x": ""})
    write(tmp_path / "templates", DIGEST)
    write(tmp_path / "templates/digest", {"old/subject.txt": "Hi", "old/body.txt": "Hello"})
    assert "there is no template" in problems(tmp_path / "templates", name)


def test_everything_wrong_is_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "digest/subject.txt": "Hello {{ name",
            "digest/body.html": '{% extends "_layuot.html" %}\n\n{% include snippet %}\n{% include "_bad.html" %}',
            "_layout.html": "",
            "_bad.html": "\n{{ name | nosuch }}",
        },
    )
    told = problems(tmp_path)
    assert f"{tmp_path}/digest/subject.txt:1: " in told
    assert f'{tmp_path}/digest: there is no file "digest/body.txt"' in told
    assert (
        f'{tmp_path}/digest/body.html:1: there is no file "_layuot.html"; did you mean "_layout.html"?'
        in told
    )
    assert f"{tmp_path}/digest/body.html:3: what it refers to depends on a variable" in told
    assert f"{tmp_path}/_bad.html:2: No filter named 'nosuch'" in told
    assert told.count("\n") == 4


@pytest.mark.parametrize(
    "reference",
    ['"_a.html" if vip else "_b.html"', '"_" ~ kind ~ ".html"', "[name]", '["_layout.html", name]', "3"],
)
def test_a_reference_that_is_not_plain_text_is_refused(tmp_path: Path, reference: str) -> None:
    write(tmp_path, DIGEST | {"digest/body.html": f"{{% include {reference} %}}"})
    assert "depends on a variable" in problems(tmp_path)


@pytest.mark.parametrize(
    "reference", ["../secret.html", "/etc/passwd", "digest/../../secret.html", "link.html", "./_layout.html"]
)
def test_a_reference_stays_in_the_directory(tmp_path: Path, reference: str) -> None:
    write(tmp_path, {"secret.html": "secret"})
    directory = write(tmp_path, {"templates/x": ""}) / "templates"
    write(directory, DIGEST | {"digest/body.html": f'{{% include "{reference}" %}}'})
    (directory / "link.html").symlink_to(tmp_path / "secret.html")
    assert f'body.html:1: "{reference}" is not a path inside of' in problems(directory)


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    write(tmp_path / "release", DIGEST)
    (tmp_path / "current").symlink_to(tmp_path / "release")
    assert read_bundle(tmp_path / "current", "digest").files == DIGEST


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write(tmp_path, DIGEST)
    (tmp_path / "digest/body.txt").write_bytes("Grüße".encode("latin-1"))
    assert "digest/body.txt: is not UTF-8: byte 3 is wrong" in problems(tmp_path)


def test_a_mail_is_rendered_from_its_fields() -> None:
    rendered = template().render(FIELDS)
    assert rendered.subject == "Your week, Ada"
    assert rendered.text == "Hello Ada\n* one\n* two\n"
    assert rendered.html == "<html><body><p>Hello Ada</p></body></html>"


def test_fields_are_escaped_in_html_only() -> None:
    rendered = template(bodytxt="{{ name }}").render(FIELDS | {"name": "<Ada & Co>"})
    assert "<p>Hello &lt;Ada &amp; Co&gt;</p>" in str(rendered.html)
    assert rendered.text == "<Ada & Co>"
    assert rendered.subject == "Your week, <Ada & Co>"


def test_the_variables_are_those_that_the_audience_must_provide() -> None:
    made = template(
        bodytxt='{% set sum = 3 %}{{ sum }}{% for item in items %}{% include "_row.txt" %}{% endfor %}{{ range(3) }}',
        bodyhtml='{% extends "_layout.html" %}{% set title = "x" %}{% block body %}{{ self.body }}{% endblock %}',
        **{
            "_row.txt": "{{ item.title }} {{ loop.index }} {{ currency }}",
            "_layout.html": "{{ title }} {{ company }}",
        },
    )
    assert made.variables == {"name", "items", "currency", "company"}


def test_a_variable_that_only_another_file_sets_is_still_wanted() -> None:
    made = template(subjecttxt="{% set item = 1 %}{{ item }}", bodytxt="{{ item }}", bodyhtml="")
    assert made.variables == {"item"}


def test_files_that_include_each_other_have_finite_variables() -> None:
    made = template(
        bodytxt='{{ a }}{% if more %}{% include "_x.txt" %}{% endif %}',
        **{"_x.txt": '{{ b }}{% include "digest/body.txt" %}'},
    )
    assert made.variables == {"a", "b", "more", "name"}


@pytest.mark.parametrize(
    ("body", "fields", "reason"),
    [
        ("a\n{{ nmae }}", {}, "body.txt:2: " + UNDEFINED + ", in: {{ nmae }}"),
        ("\n{{ user.name }}", {"user": {}}, "body.txt:2: " + UNDEFINED + ", in: {{ user.name }}"),
        ("{{ user[secret] }}", {"user": {}}, "body.txt:1: " + UNDEFINED),
        ("{{ secret | date('%d') }}", {}, "body.txt:1: not a date in ISO 8601"),
        ("{{ secret.index('x') }}", {}, "body.txt:1: ValueError, in: "),
        ("{{ 1 + secret }}", {}, "body.txt:1: TypeError, in: "),
        ('{% include "digest/body.txt" %}', {}, "body.txt:1: RecursionError, in: "),
        ('\n{% include "_x.txt" %}', {}, "_x.txt:2: ZeroDivisionError, in: {{ 1 / 0 }}"),
    ],
)  # fmt: skip
def test_a_failure_names_the_line_and_never_shows_a_field(
    body: str, fields: dict[str, object], reason: str
) -> None:
    made = template(bodytxt=body, **{"_x.txt": "\n{{ 1 / 0 }}"})
    with pytest.raises(RenderFailed) as failure:
        made.render(FIELDS | {"secret": SECRET} | fields)
    assert reason in str(failure.value)
    assert SECRET not in "".join(traceback.format_exception(failure.value))


def test_a_bundle_that_does_not_compile_says_where() -> None:
    with pytest.raises(RenderFailed, match=r"digest/body\.txt:2: No filter named 'nosuch'"):
        template(bodytxt="a\n{{ a | nosuch }}")


@pytest.mark.parametrize("subject", ["", " \n", "{% if false %}x{% endif %}", "{{ '\xa0' }}"])
def test_an_empty_subject_is_refused(subject: str) -> None:
    with pytest.raises(RenderFailed, match=r"digest/subject\.txt: the subject is empty"):
        template(subjecttxt=subject).render(FIELDS)


@given(name=st.text())
@example(name="Ada\r\nBcc: eve@example.org")
@example(name="a\x00b")
@example(name="a\x0bb")
@example(name="a\u2028b")
@example(name=" a \t\xa0 b ")
def test_a_subject_is_one_clean_line_or_refused(name: str) -> None:
    made = compile_bundle(Bundle(name="x", files={"x/subject.txt": "Hi {{ name }}\n", "x/body.txt": ""}))
    try:
        subject = made.render({"name": name}).subject
    except RenderFailed as failure:
        assert "control character" in str(failure)
        return
    assert len(subject.splitlines()) == 1
    assert subject == subject.strip(" ")
    assert "  " not in subject
    assert "\0" not in subject


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("2026-11-23", "23.11.2026 00:00"),
        ("2026-11-23T08:05:00", "23.11.2026 08:05"),
        ("2026-11-23T08:05:00Z", "23.11.2026 08:05"),
        ("2026-11-23 08:05:00+02:00", "23.11.2026 08:05"),
    ],
)
def test_dates_are_written_by_a_format(value: str, written: str) -> None:
    made = template(bodytxt="{{ day | date('%d.%m.%Y %H:%M') }}")
    assert made.render(FIELDS | {"day": value}).text == written


def test_two_renderings_are_the_same() -> None:
    for chance in ("{{ items | random }}", "{{ lipsum() }}"):
        with pytest.raises(RenderFailed):
            template(bodytxt=chance).render(FIELDS)


def test_styles_are_inlined_but_media_queries_stay() -> None:
    style = "<style>p { color: red } @media (max-width: 600px) { p { color: blue } }</style>"
    html = str(
        template(bodyhtml=f"<html><head>{style}</head><body><p>Ada</p></body></html>").render(FIELDS).html
    )
    assert '<p style="color: red;">Ada</p>' in html
    assert "@media (max-width: 600px)" in html


def test_html_without_styles_is_left_alone() -> None:
    assert template(bodyhtml="<P>as it is").render(FIELDS).html == "<P>as it is"


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The URL of a web server that serves a style sheet for any path, and the paths it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/css")
            self.end_headers()
            self.wfile.write(b"p { color: red }")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


def test_nothing_is_ever_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, list[str]]
) -> None:
    url, paths = asked
    (tmp_path / "local.css").write_text("p { color: red }")
    monkeypatch.chdir(tmp_path)
    sheets = [
        f"{url}/a.css",
        f"//{url[7:]}/b.css",
        (tmp_path / "local.css").as_uri(),
        "local.css",
        str(tmp_path / "local.css"),
    ]
    links = "".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in sheets)
    imports = "".join(f"@import url({sheet});" for sheet in sheets)
    head = f"{links}<style>{imports} i {{ margin: 0 }}</style>"
    html = f"<html><head>{head}</head><body><p>Ada</p><img src='{url}/i.png'></body></html>"
    assert "<p>Ada</p>" in str(template(bodyhtml=html).render(FIELDS).html)
    assert paths == []
