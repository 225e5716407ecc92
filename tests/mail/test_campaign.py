from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from maintd.errors import Problems
from maintd.mail.campaign import AudienceSpec, CampaignSpec, read_files

SPEC = CampaignSpec(
    source="app",
    audience=AudienceSpec(sql="digest.sql"),
    shared={"top": "top.sql", "new": "new.sql"},
    template="digest",
)


def test_every_text_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "digest.sql").write_bytes("SELECT 'Grüße'".encode("latin-1"))
    (tmp_path / "news.sql").write_text("SELECT 1")
    (tmp_path / "top.sql").write_text("SELECT 1")
    (tmp_path / "digest").mkdir()
    (tmp_path / "digest" / "subject.txt").write_bytes(b"\xff")
    (tmp_path / "digest" / "body.txt").write_text("Hello")
    with pytest.raises(Problems) as raised:
        read_files(SPEC, schedules=tmp_path, templates=tmp_path)
    assert list(map(str, raised.value.problems)) == [
        f"{tmp_path}/digest.sql: is not UTF-8: byte 11 is wrong; save it as UTF-8",
        f'shared.new: there is no file {tmp_path}/new.sql; did you mean "news.sql"?',
        f"{tmp_path}/digest/subject.txt: is not UTF-8: byte 1 is wrong; save it as UTF-8",
    ]


def test_all_headers_that_cannot_be_given_are_named_at_once() -> None:
    with pytest.raises(ValidationError, match=r"(?s)'To'.*'X Bad'.*'X-Evil'"):
        CampaignSpec.model_validate(
            {
                **SPEC.model_dump(by_alias=True),
                "headers": {
                    "To": "a@example.org",
                    "X Bad": "x",
                    "X-Fine": "x",
                    "X-Evil": "a\r\nBcc: b@example.org",
                },
            }
        )


@pytest.mark.parametrize(
    "headers",
    [
        {"Bcc": "x@y.example"},
        {"Su bject": "x"},
        {"X-Ü": "x"},
        {"X-Note": "one\ntwo"},
        {"To": "x@y.example"},
        {"X-Edition": "{{ edition }}"},
    ],
)
def test_a_header_that_cannot_be_given_is_refused_when_the_job_is_read(headers: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="header"):
        CampaignSpec.model_validate({**SPEC.model_dump(by_alias=True), "headers": headers})
