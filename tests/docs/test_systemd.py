"""The unit and its env file: what systemd starts is what maintd accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maintd.config.envfile import scan_env_file
from maintd.config.load import load_settings
from maintd.config.settings import Settings
from tests.docs.pages import ROOT, calls, carry_out_nothing

UNIT = ROOT / "systemd" / "maintd.service"
EXAMPLE = ROOT / "systemd" / "maintd.env.example"


def unit_lines(key: str, unit: Path = UNIT) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)


def example_settings() -> Settings:
    return load_settings(environ={}, env_file=EXAMPLE)


def test_the_example_of_an_env_file_is_one() -> None:
    example = scan_env_file(EXAMPLE)
    assert not example.problems
    assert set(example.values) <= {variable for variable, _, _ in example_settings().public()}


def test_every_line_of_the_example_that_is_commented_out_would_be_accepted(tmp_path: Path) -> None:
    secret = tmp_path / "smtp_url"
    secret.write_text("smtps://user:secret@relay.example\n")
    lines = re.findall(r"^#([A-Z].*=.*)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in lines:
        env_file = tmp_path / "maintd.env"
        env_file.write_text(re.sub(r"_FILE=.*", f"_FILE={secret}", line))
        load_settings(environ={"HOME": "/root"}, env_file=env_file)


def test_the_unit_and_its_env_file_mean_the_same_state_directory() -> None:
    [name] = unit_lines("StateDirectory")
    assert example_settings().state_dir == Path("/var/lib") / name


@pytest.mark.parametrize("unit", sorted((ROOT / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_systemd_waits_for_an_orderly_stop_of_every_process(unit: Path) -> None:
    settings = example_settings()
    assert settings.redis_url is None
    [patience_s] = unit_lines("TimeoutStopSec", unit)
    # All processes at once, then the embedded Valkey, which outlives them.
    assert int(patience_s) > 2 * settings.stop_timeout.total_seconds()


def test_the_unit_starts_a_command_that_exists() -> None:
    [start] = unit_lines("ExecStart")
    [arguments] = calls(start)
    assert carry_out_nothing(arguments) == "maintd up"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit() -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
