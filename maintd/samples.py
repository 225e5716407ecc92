"""Where the sample set lies: in the wheel beside the code, in a checkout beside the package."""

from __future__ import annotations

from pathlib import Path

from maintd.errors import MaintdError

SCHEDULES = "schedules"
TEMPLATES = "templates"


def sample_directory(name: str) -> Path:
    """The folder of sample `schedules` or `templates`.

    Raises:
        MaintdError: The installation is incomplete.
    """
    package = Path(__file__).parent
    for directory in (package / "sample" / name, package.parent / name):
        if directory.is_dir():
            return directory
    raise MaintdError(f"this installation of maintd lacks its sample {name}; install it again")
