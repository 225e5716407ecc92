"""The README's first job works as it is printed."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, blocks

_INSTALLATION = re.compile(r"^(python3 -m venv|pip install) .*\n", re.MULTILINE)


def walk_through() -> str:
    """The blocks of the section as one script; what runs in a second terminal runs beside it."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your first job")
    section, _, _ = rest.partition("\n## ")
    parts = []
    for language, text in blocks(section):
        if language == "toml":
            parts.append(f"cat > schedules/shop.toml <<'END'\n{text}END\n")
        elif text == "maintd up\n":
            parts.append("maintd up 2> up.log &\n")
        else:
            parts.append(_INSTALLATION.sub("", text))
    return "".join([*parts, "kill %1; wait %1\n"])


def test_the_first_job_of_the_readme_does_what_the_readme_says(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAINTD_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    walked = subprocess.run(
        ["bash", "-c", walk_through()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert walked.returncode == 0, walked.stdout + walked.stderr
    assert re.search(r"would remove +476", walked.stdout)
    assert re.search(r"old-sessions@\S+ +succeeded", walked.stdout)
    with contextlib.closing(sqlite3.connect(tmp_path / "shop" / "shop.db")) as database:
        assert database.execute("SELECT count(*) FROM session").fetchone() == (1000 - 476,)
