from __future__ import annotations

from pathlib import Path

import pytest

from maintd.errors import Problems
from maintd.textfile import read_text


def test_the_mark_of_an_editor_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_bytes(b"\xef\xbb\xbfSELECT 1 -- \xc3\xbc")
    assert read_text(tmp_path / "a.sql") == "SELECT 1 -- ü"


def test_a_file_that_is_not_utf8_is_named_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_bytes(b"-- \xfc")
    with pytest.raises(Problems) as raised:
        read_text(tmp_path / "a.sql")
    assert str(raised.value) == f"{tmp_path / 'a.sql'}: is not UTF-8: byte 4 is wrong; save it as UTF-8"


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.sql").mkdir()
    with pytest.raises(Problems) as raised:
        read_text(tmp_path / "a.sql")
    assert str(raised.value) == f"{tmp_path / 'a.sql'}: cannot be read: Is a directory"
