"""What the tests of sending share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def mailbox(tmp_path: Path) -> Path:
    """Where a sink keeps what it accepts; made when it does."""
    return tmp_path / "mailbox"
