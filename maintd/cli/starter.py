"""What `maintd init` writes: the sample set with every job disabled, and an env file with every setting explained."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from maintd.config.given import ENV_FILE
from maintd.config.reference import SettingDoc, reference
from maintd.errors import Problem, Problems
from maintd.samples import SCHEDULES, TEMPLATES, sample_directory

SETTINGS_FILE = "maintd.env"

_KIND = re.compile(r"^kind( *)=.*$", re.MULTILINE)
_HEAD = """\
# The settings of maintd: one NAME=value a line. The environment wins over this file, and `maintd settings` shows what
# holds and where it came from. A name with _FILE at its end takes the path of a file that holds the value.
# What stands behind each # is the default, or an example where the default depends on the host.
"""
#: Where the default depends on the host, or there is none.
_EXAMPLES = {
    "MAINTD_STATE_DIR": "/var/lib/maintd",
    "MAINTD_DATABASE_URL": "postgresql://maintd@localhost/app",
    "MAINTD_REDIS_URL": "redis://localhost:6379/0",
    "MAINTD_SOURCE_<NAME>_URL": "postgresql://maintd@localhost/app",
    "MAINTD_SMTP_LIMIT": "600/min",
    "MAINTD_LANE_<NAME>": "20/s gmail.com googlemail.com",
    "MAINTD_SMTP_HELLO": "jobs.acme.example",
    "MAINTD_MAIL_FROM": "Acme <news@acme.example>",
    "MAINTD_MAIL_REDIRECT": "staging@acme.example",
}


def starter_files() -> dict[str, str]:
    """The texts to begin with, by their path in the new directory."""
    files = {SETTINGS_FILE: settings_text()}
    for name in (SCHEDULES, TEMPLATES):
        directory = sample_directory(name)
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            text = path.read_text(encoding="utf-8")
            files[f"{name}/{path.relative_to(directory)}"] = (
                disabled(text) if path.suffix == ".toml" else text
            )
    return files


def disabled(jobs: str) -> str:
    """The text of a job file with every job disabled, comments and all."""
    return _KIND.sub(lambda kind: f"{kind[0]}\nenabled{' ' * max(1, len(kind[1]) - 3)}= false", jobs)


def settings_text() -> str:
    """An env file that sets nothing and explains everything."""
    return _HEAD + "".join(_commented(doc) for doc in reference() if doc.name != ENV_FILE)


def write_new(files: Mapping[str, str], *, into: Path) -> None:
    """Writes texts into a directory, which is made if need be.

    Raises:
        Problems: Files that are there already, all of them; then nothing is written.
    """
    there = [into / name for name in files if (into / name).exists()]
    if there:
        cure = "move it away, or name another directory"
        raise Problems([Problem(where=str(path), what="it is there already", cure=cure) for path in there])
    for name, text in files.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600 if name == SETTINGS_FILE else 0o666)  # passwords will be in it
        path.write_text(text, encoding="utf-8")


def _commented(doc: SettingDoc) -> str:
    about = textwrap.fill(doc.description, width=116) + f"\nDefault: {doc.default_text}"
    value = _EXAMPLES.get(doc.name, doc.default_text)
    name = doc.name.replace("LANE_<NAME>", "LANE_GMAIL").replace("<NAME>", "APP")
    return f"\n{textwrap.indent(about, '# ')}\n#{name}={value}\n"
