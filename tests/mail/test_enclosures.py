from __future__ import annotations

import os
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from maintd.errors import Problems
from maintd.mail.campaign import AudienceSpec, CampaignSpec, bundle_of, content_digest, read_files
from maintd.mail.content.enclosures import MOST_OCTETS, Enclosure
from maintd.mail.content.images import with_data_urls
from maintd.mail.content.templates import Bundle, compile_bundle, read_bundle

PDF, PNG = b"%PDF-\xff\r\n", b"\x89PNG"
LOGO = Enclosure(name="logo.png", content=PNG)


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A template with an attachment and an image that a layout shows."""
    directory = tmp_path / "templates"
    for path, content in {
        "digest/subject.txt": b"Hi",
        "digest/body.txt": b"Hello cid:nobody.png",
        "digest/body.html": b'{% extends "_layout.html" %}',
        "_layout.html": b'<p>\n<img src="cid:logo.png">',
        "digest/attachments/terms.pdf": PDF,
        "digest/inline/logo.png": PNG,
    }.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def problems(directory: Path) -> list[str]:
    with pytest.raises(Problems) as refusal:
        read_bundle(directory, "digest")
    return [str(problem).replace(f"{directory}/", "") for problem in refusal.value.problems]


def rendered(html: str, *images: Enclosure) -> str:
    files = {f"digest/inline/{image.name}": b64encode(image.content).decode() for image in images}
    texts = {"digest/subject.txt": "Hi", "digest/body.txt": "", "digest/body.html": html}
    return str(compile_bundle(Bundle(name="digest", files=texts | files)).render({}).html)


def test_enclosures_are_read_and_come_back_as_they_were(templates: Path) -> None:
    bundle = read_bundle(templates, "digest")
    assert bundle.attachments == (Enclosure(name="terms.pdf", content=PDF),)
    assert bundle.inline == (LOGO,)
    assert bundle.texts.keys() == {
        "digest/subject.txt", "digest/body.txt", "digest/body.html", "_layout.html",
    }  # fmt: skip
    assert compile_bundle(bundle).render({}).text == "Hello cid:nobody.png"


def test_what_is_enclosed_is_a_part_of_the_edition(templates: Path) -> None:
    (templates / "digest.sql").write_text("SELECT 1")
    spec = CampaignSpec(source="app", audience=AudienceSpec(sql="digest.sql"), template="digest")
    files = read_files(spec, schedules=templates, templates=templates)
    assert bundle_of(spec, files) == read_bundle(templates, "digest")
    (templates / "digest/attachments/terms.pdf").write_bytes(PDF + b"changed")
    changed = read_files(spec, schedules=templates, templates=templates)
    assert content_digest(spec, changed) != content_digest(spec, files)
    assert bundle_of(spec, changed).digest != bundle_of(spec, files).digest


def test_hidden_files_stay_where_they_are(templates: Path) -> None:
    before = read_bundle(templates, "digest")
    (templates / "digest/attachments/.DS_Store").write_bytes(b"x")
    (templates / "digest/inline/.gitkeep").write_bytes(b"")
    assert read_bundle(templates, "digest") == before


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("attachment", "attachments"),
        ("Attachments", "attachments"),
        ("Inline", "inline"),
        ("inlined", "inline"),
    ],
)
def test_a_misspelt_directory_of_enclosures_is_not_passed_over(
    templates: Path, misspelt: str, meant: str
) -> None:
    (templates / "digest" / misspelt).mkdir()
    assert problems(templates) == [
        f'digest/{misspelt}: nothing in it goes with the mail; did you mean "{meant}"?'
    ]


def test_a_directory_of_texts_may_have_any_name(templates: Path) -> None:
    for name in ("online", "parts", ".git"):
        (templates / "digest" / name).mkdir()
    (templates / "digest/online/note.txt").write_text("once")
    (templates / "digest/body.txt").write_text('{% include "digest/online/note.txt" %}')
    assert "digest/online/note.txt" in read_bundle(templates, "digest").texts


def test_everything_that_cannot_be_enclosed_is_told_at_once(templates: Path) -> None:
    attachments = templates / "digest/attachments"
    (attachments / "more").mkdir()
    (attachments / "gone.pdf").symlink_to("nowhere.pdf")
    (attachments / "passwords").symlink_to("/etc/passwd")
    (attachments / "two\nlines.pdf").write_bytes(PDF)
    Path(os.fsdecode(bytes(attachments) + b"/\xff.pdf")).write_bytes(PDF)
    (templates / "digest/inline/a b.png").write_bytes(PNG)
    told = problems(templates)
    assert "digest/attachments/more: is no file, and only files can be in attachments" in told
    assert "digest/attachments/gone.pdf: is no file, and only files can be in attachments" in told
    assert "digest/attachments/passwords: leads out of " in "\n".join(told)
    assert r"'two\nlines.pdf' has a character that cannot be printed; rename it" in "\n".join(told)
    assert r"'\udcff.pdf' has a character that cannot be printed; rename it" in "\n".join(told)
    assert "digest/inline/a b.png: its name cannot stand behind cid:" in "\n".join(told)
    assert len(told) == 6


def test_a_folder_that_is_a_file_is_told(templates: Path) -> None:
    (templates / "digest/inline/logo.png").unlink()
    (templates / "digest/inline").rmdir()
    (templates / "digest/inline").write_text("")
    assert problems(templates) == ["digest/inline: cannot be read: Not a directory"]


def test_what_is_enclosed_has_a_size_that_mail_can_carry(templates: Path) -> None:
    with (templates / "digest/attachments/film.mp4").open("wb") as film:
        film.truncate(MOST_OCTETS - len(PDF) - len(PNG))
    assert len(read_bundle(templates, "digest").attachments) == 2
    with (templates / "digest/attachments/film.mp4").open("ab") as film:
        film.write(b"x")
    assert problems(templates) == [
        "digest: 5.0 MiB in attachments and inline; 5.0 MiB may go with a mail; link to large files instead"
    ]


@pytest.mark.parametrize("path", ["digest/attachments/terms.pdf", "digest/inline/logo.png"])
def test_what_is_enclosed_is_no_part_of_a_text(templates: Path, path: str) -> None:
    (templates / "digest/body.txt").write_text(f'{{% include "{path}" %}}')
    [told] = problems(templates)
    assert told == f'digest/body.txt:1: "{path}" is enclosed with the mail and cannot be a part of its text'


def test_an_image_that_is_shown_is_there(templates: Path) -> None:
    (templates / "_layout.html").write_text('<img src="cid:logo.png">\n\n<img src="cid:lgoo.png">')
    assert problems(templates) == [
        '_layout.html:3: there is no inline image "lgoo.png"; did you mean "logo.png"?'
    ]


def test_an_image_that_is_there_is_shown(templates: Path) -> None:
    (templates / "_layout.html").write_text('<!-- acid:logo.png --> src="CID:other.png"')
    (templates / "digest/inline/other.png").write_bytes(PNG)
    [told] = problems(templates)
    assert told.startswith('digest/inline/logo.png: no HTML shows it; write src="cid:logo.png"')


def test_without_html_no_image_is_shown(templates: Path) -> None:
    (templates / "digest/body.html").unlink()
    [told] = problems(templates)
    assert told.startswith("digest/inline/logo.png: no HTML shows it")


@pytest.mark.parametrize(
    "reference",
    ['src="cid:{{ name }}"', "src=cid:{{name}}.png", 'src="cid:{% if a %}x{% endif %}"', '{{ "cid:" ~ a }}'],
)
def test_which_image_is_shown_does_not_depend_on_a_variable(templates: Path, reference: str) -> None:
    (templates / "_layout.html").write_text(f'<img src="cid:logo.png">\n{reference}')
    [told] = problems(templates)
    assert told.startswith("_layout.html:2: what cid: refers to depends on a variable")


@pytest.mark.parametrize(
    "html",
    [
        '<img src="cid:logo.png">',
        "<img src='cid:logo.png'>",
        "<img src=cid:logo.png>",
        '<img srcset="cid:logo.png 1x, cid:logo.png 2x">',
        '<p style="background: url(cid:logo.png)">',
        '<p style="background: url(&quot;cid:logo.png&quot;)">',
        '{% set logo = "cid:logo.png" %}<img src="{{ logo }}">',
    ],
)
def test_html_refers_to_an_image_as_the_mail_calls_it(html: str) -> None:
    made = rendered(html, LOGO)
    assert f"cid:{LOGO.content_id}" in made
    assert "cid:logo.png" not in made.replace(LOGO.content_id, "")


def test_a_style_refers_to_an_image_as_the_mail_calls_it() -> None:
    made = rendered('<style>p { background: url("cid:logo.png") }</style><p>x</p>', LOGO)
    assert f"cid:{LOGO.content_id}" in made


def test_only_the_same_image_has_the_same_identifier() -> None:
    assert replace(LOGO).content_id == LOGO.content_id
    assert replace(LOGO, content=b"x").content_id != LOGO.content_id
    assert replace(LOGO, name="x.png").content_id != LOGO.content_id


def test_an_error_shows_the_line_as_it_was_written(templates: Path) -> None:
    with pytest.raises(Exception, match=r'in: <img src="cid:logo\.png">\{\{ nobody \}\}'):
        rendered('<img src="cid:logo.png">{{ nobody }}', LOGO)


def test_a_page_holds_its_images() -> None:
    made = with_data_urls(rendered('<img src="cid:logo.png">', LOGO), [LOGO])
    assert made == f'<img src="data:image/png;base64,{b64encode(PNG).decode()}">'
