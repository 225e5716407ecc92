"""The wheel is all that is needed: it runs outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from maintd.ledger.engine import head_revision, open_ledger, schema_revision

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel, unpacked as an installer does it."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "site")
    return directory / "site"


def maintd(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the unpacked package; -P and the path keep the checkout out."""
    code = "import sys; from maintd.cli import main; main()"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAINTD_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=cwd,
        env=environ | {"PYTHONPATH": str(installed), "XDG_STATE_HOME": str(cwd / "state")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_carries_types_migrations_and_the_sample_set(installed: Path) -> None:
    assert (installed / "maintd" / "py.typed").is_file()
    assert list((installed / "maintd" / "ledger" / "migrations" / "versions").glob("0001_*.py"))
    assert (installed / "maintd" / "sample" / "schedules" / "nightly.toml").is_file()
    assert (installed / "maintd" / "sample" / "templates" / "digest" / "body.html").is_file()


def test_the_wheel_makes_a_project_and_a_ledger_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert maintd(installed, tmp_path, "init").returncode == 0
    assert maintd(installed, tmp_path, "migrate").returncode == 0

    assert (tmp_path / "schedules" / "nightly.toml").is_file()
    ledger = open_ledger(f"sqlite:///{tmp_path / 'state' / 'maintd' / 'ledger.db'}")
    assert schema_revision(ledger) == head_revision()
    ledger.dispose()
