"""Beginning, looking at settings, and checking everything at once."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from maintd.clock import SystemClock
from maintd.config.load import load_settings
from maintd.errors import Problems
from maintd.execution.check import Verdict, check
from maintd.execution.kinds import SPECS
from maintd.execution.worker import Worker
from maintd.ledger import runs
from maintd.ledger.engine import identity, open_ledger
from maintd.mail.recording.volatile import file_system_of
from maintd.samples import sample_directory
from maintd.scheduling.files import read_jobs
from tests.cli.conftest import Maintd, Outcome, Project
from tests.sinks import SinkThread

MEMORY = Path("/dev/shm")
DEAD = "redis://127.0.0.1:1/0"


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "state" not in path.parts
    }


def verdicts(outcome: Outcome) -> dict[str, str]:
    return {one["what"]: one["verdict"] for one in outcome.json}


def problems(outcome: Outcome) -> dict[str, str]:
    return {one["what"]: json.dumps(one["problems"]) for one in outcome.json if one["problems"]}


def test_a_sample_set_is_valid_and_every_job_of_it_is_disabled(bare: Maintd, tmp_path: Path) -> None:
    assert bare("init", str(tmp_path)).code == 0
    found = read_jobs(tmp_path / "schedules", kinds=SPECS)
    assert [job.header.enabled for job in found] == [False] * len(found)
    assert {job.name for job in found} >= {"nightly", "weekly-digest"}
    assert bare("check", "--offline").code == 0


def test_a_sample_set_keeps_the_text_of_the_sample_but_for_what_disables_it(
    bare: Maintd, tmp_path: Path
) -> None:
    bare("init", str(tmp_path))
    for name in ("schedules", "templates"):
        for path in (path for path in sample_directory(name).rglob("*") if path.is_file()):
            written = (tmp_path / name / path.relative_to(sample_directory(name))).read_text()
            assert re.sub(r"^enabled *= false\n", "", written, flags=re.MULTILINE) == path.read_text()


def test_init_goes_into_the_current_directory_without_another(
    bare: Maintd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare("init")
    assert (tmp_path / "maintd.env").is_file()


def test_init_overwrites_nothing_and_names_all_that_is_there(bare: Maintd, tmp_path: Path) -> None:
    (tmp_path / "schedules").mkdir()
    mine = {tmp_path / "schedules" / "nightly.toml": "# mine", tmp_path / "maintd.env": "# my own"}
    for path, text in mine.items():
        path.write_text(text)
    refused = bare("init", str(tmp_path))
    assert refused.code == 1
    assert {path for path in mine if str(path) in refused.err} == set(mine)
    assert files_below(tmp_path) == {str(p.relative_to(tmp_path)): t.encode() for p, t in mine.items()}


def test_the_new_env_file_sets_nothing_and_each_of_its_lines_can_be_taken_into_use(
    bare: Maintd, tmp_path: Path
) -> None:
    bare("init", str(tmp_path))
    path = tmp_path / "maintd.env"
    assert path.stat().st_mode & 0o077 == 0
    untouched = load_settings(environ={"HOME": "/home/x"}, env_file=path)
    assert {place for _, _, place in untouched.public()} == {"default"}
    path.write_text(re.sub(r"^#(MAINTD_)", r"\1", path.read_text(), flags=re.MULTILINE))
    used = load_settings(environ={"HOME": "/home/x"}, env_file=path)
    assert all("maintd.env:" in place for _, _, place in used.public())
    assert "app" in used.source_urls


def test_settings_are_shown_with_their_origin_and_without_passwords(bare: Maintd, tmp_path: Path) -> None:
    env_file = tmp_path / "my.env"
    env_file.write_text("\nMAINTD_MAIL_BATCH=77\n")
    bare.environ["MAINTD_SMTP_URL"] = "smtps://me:hunter2@relay.example"
    shown = bare("--env-file", str(env_file), "settings", "--json")
    by_name = {one["name"]: one for one in shown.json}
    assert by_name["MAINTD_MAIL_BATCH"]["value"] == "77"
    assert by_name["MAINTD_MAIL_BATCH"]["came_from"].endswith("my.env:2")
    assert by_name["MAINTD_SMTP_URL"]["came_from"] == "environment"
    assert by_name["MAINTD_TICK"]["came_from"] == "default"
    assert "hunter2" not in shown.out + bare("settings").out


def test_wrong_settings_are_all_named_at_once(bare: Maintd) -> None:
    bare.environ |= {"MAINTD_TICK": "soon", "MAINTD_MAIL_BATCH": "0"}
    for command in ("settings", "migrate", "timers"):
        refused = bare(command)
        assert refused.code == 1
        assert "MAINTD_TICK" in refused.err
        assert "MAINTD_MAIL_BATCH" in refused.err
        assert "Traceback" not in refused.err


def test_migrate_makes_a_ledger_once(bare: Maintd, database_url: str) -> None:
    bare.environ["MAINTD_DATABASE_URL"] = database_url
    found = set()
    for _ in range(2):
        assert bare("migrate").code == 0
        ledger = open_ledger(database_url)
        with ledger.read() as connection:
            found.add(identity(connection).ledger_id)
        ledger.dispose()
    assert len(found) == 1


def test_a_ledger_that_cannot_be_made_is_an_error_in_words(bare: Maintd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "text.db").write_text("this is no database, only a text that is long enough" * 20)
    for path in ("file/ledger.db", "text.db"):
        bare.environ["MAINTD_DATABASE_URL"] = f"sqlite:///{tmp_path}/{path}"
        refused = bare("migrate")
        assert refused.code == 1
        assert refused.err.startswith("error: ")
        assert "Traceback" not in refused.err


def test_when_all_is_well_check_says_so_and_leaves_no_trace(project: Project, tmp_path: Path) -> None:
    project.maintd("apply")
    before = files_below(tmp_path)
    checked = project.maintd("check", "--json")
    assert checked.code == 0, checked.out
    assert set(verdicts(checked).values()) == {"ok"}
    assert {"ledger", "redis", "relay", "source app", "job weekly-digest"} <= verdicts(checked).keys()
    after = files_below(tmp_path)
    assert {name: text for name, text in after.items() if "test.db" not in name} == {
        name: text for name, text in before.items() if "test.db" not in name
    }
    with project.runtime() as runtime, runtime.ledger.read() as connection:
        assert runs.latest(connection, job=None, limit=1) == []


def test_everything_wrong_is_named_at_once(small_project: Project, redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    small_project.change('column = "expires_at"', 'column = "expired_at"')
    environ = small_project.maintd.environ
    environ["MAINTD_DATABASE_URL"] = f"sqlite:///{tmp_path}/none.db"
    environ["MAINTD_SOURCE_OTHER_URL"] = f"sqlite:///{tmp_path}/other.db"
    environ["MAINTD_SMTP_URL"] = environ["MAINTD_SMTP_URL"].replace("smtp:", "smtp+starttls:")
    checked = small_project.maintd("check", "--json")
    assert checked.code == 1
    found = problems(checked)
    assert found.keys() == {"ledger", "redis", "source other", "relay", "job expired-sessions"}
    assert {verdicts(checked)[what] for what in found} == {"problem"}
    assert "maintd migrate" in found["ledger"]
    assert "noeviction" in found["redis"]
    assert "other.db" in found["source other"]
    assert "expires_at" in found["job expired-sessions"]
    assert "nightly.toml" in found["job expired-sessions"]
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "other.db").exists()
    errors = small_project.maintd("check").err
    assert all(name in errors for name in ("none.db", "other.db", "noeviction", "expires_at"))


@pytest.mark.parametrize(
    ("variable", "url", "what"),
    [
        ("MAINTD_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "ledger"),
        ("MAINTD_REDIS_URL", DEAD, "redis"),
        ("MAINTD_SOURCE_APP_URL", "postgresql://nobody@127.0.0.1:1/none", "source app"),
        ("MAINTD_SMTP_URL", "smtp://127.0.0.1:1", "relay"),
    ],
)
def test_a_service_that_is_only_away_is_told_from_one_that_is_wrong(
    small_project: Project, variable: str, url: str, what: str
) -> None:
    small_project.maintd.environ[variable] = url
    checked = small_project.maintd("check", "--json")
    assert checked.code == 69
    assert problems(checked).keys() == {what}
    assert verdicts(checked)[what] == "away"


def test_every_relay_is_tried_and_told_of(small_project: Project, relay: SinkThread) -> None:
    environ = small_project.maintd.environ
    environ["MAINTD_SMTP_URL"] = f"{relay.url}?connections=2 smtp://127.0.0.1:1?weight=0"
    checked = small_project.maintd("check", "--json")
    assert checked.code == 69
    told = {what: verdict for what, verdict in verdicts(checked).items() if what.startswith("relay")}
    assert told == {f"relay {relay.url}": "ok", "relay smtp://127.0.0.1:1": "away"}
    environ["MAINTD_SMTP_URL"] = f"{relay.url}?conections=2 smtp://127.0.0.1:1?weight=heavy"
    assert len(small_project.maintd("check").err.split("MAINTD_SMTP_URL, relay ")) == 3


@pytest.mark.parametrize("how", [(), ("--offline",)])
def test_a_redirect_of_all_mail_is_warned_of_and_is_no_failure(
    small_project: Project, relay: SinkThread, how: tuple[str, ...]
) -> None:
    small_project.maintd.environ["MAINTD_MAIL_REDIRECT"] = "staging@acme.example"
    checked = small_project.maintd("check", *how, "--json")
    assert checked.code == 0
    assert verdicts(checked)["redirect"] == "warning"
    assert "staging@acme.example" in small_project.maintd("check", *how).out


def test_offline_no_service_is_needed(small_project: Project) -> None:
    away = {"MAINTD_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "MAINTD_REDIS_URL": DEAD}
    small_project.maintd.environ |= away | {"MAINTD_SMTP_URL": "smtp://127.0.0.1:1"}
    assert small_project.maintd("check", "--offline").code == 0
    (small_project.jobs.parent.parent / "templates" / "digest" / "body.html").write_text("{% if %}")
    broken = small_project.maintd("check", "--offline")
    assert broken.code == 1
    assert "body.html" in broken.err
    small_project.maintd.environ["MAINTD_SMTP_URL"] = "smtp://127.0.0.1:1?wieght=3"
    assert "MAINTD_SMTP_URL" in small_project.maintd("check", "--offline").err


def test_check_tells_of_wrong_settings_like_of_anything_else(small_project: Project) -> None:
    small_project.maintd.environ["MAINTD_TICK"] = "soon"
    checked = small_project.maintd("check", "--json")
    assert checked.code == 1
    assert "MAINTD_TICK" in problems(checked)["settings"]


@pytest.mark.parametrize(
    ("disabled", "code"),
    [
        (["expired-sessions", "title-ratings", "weekly-digest", "nightly"], 0),
        (["expired-sessions"], 1),  # the pipeline runs it all the same
        ([], 1),
    ],
)
def test_what_never_runs_may_be_wrong(small_project: Project, disabled: list[str], code: int) -> None:
    small_project.change('table      = "session"', 'table      = "sessions"')
    for name in disabled:
        small_project.change(f"[{name}]\n", f"[{name}]\nenabled = false\n")
    checked = small_project.maintd("check", "--json")
    assert checked.code == code
    assert ("job expired-sessions" in problems(checked)) == bool(code)


def test_without_a_redis_there_must_be_one_to_embed(small_project: Project) -> None:
    settings = small_project.settings.model_copy(update={"redis_url": None})
    found = {}
    for program in ("/usr/bin/valkey-server", None):
        checked = check(settings, clock=SystemClock(), offline=False, embedded_server=lambda p=program: p)
        found[program] = next(one.verdict for one in checked if one.what == "redis")
    assert found == {"/usr/bin/valkey-server": Verdict.OK, None: Verdict.PROBLEM}


def test_the_schema_knows_every_kind(bare: Maintd) -> None:
    kinds = bare("schema").json["additionalProperties"]["oneOf"]
    assert {kind["title"] for kind in kinds} == SPECS.keys()


def test_a_ledger_that_is_no_database_is_named_with_a_cure(bare: Maintd, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, only a text that is long enough" * 20)
    bare.environ["MAINTD_DATABASE_URL"] = f"sqlite:///{tmp_path}/text.db"
    for command in (["migrate"], ["runs"], ["timers"], ["run", "x"], ["run", "x", "--dry-run"]):
        refused = bare(*command)
        assert refused.code == 1
        assert f"{tmp_path}/text.db" in refused.err
        assert "MAINTD_DATABASE_URL" in refused.err


def test_a_state_directory_that_cannot_be_made_is_named_by_its_setting(bare: Maintd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bare.environ["MAINTD_STATE_DIR"] = f"{tmp_path}/file/state"
    for command in ("migrate", "up"):
        refused = bare(command)
        assert (refused.code, refused.err.startswith("error: MAINTD_STATE_DIR: ")) == (1, True), refused.err


@pytest.mark.skipif(
    file_system_of(MEMORY) != "tmpfs",
    reason="this system has no file system in memory at its usual place",
)
def test_mail_does_not_rely_on_a_state_directory_in_memory(small_project: Project) -> None:
    environ = small_project.maintd.environ
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="maintd-") as volatile:
        environ |= {"MAINTD_STATE_DIR": volatile, "MAINTD_STATE_DIR_VOLATILE": "refuse"}
        checked = small_project.maintd("check", "--json")
        assert checked.code == 1
        assert "tmpfs" in problems(checked)["state directory"]
        refused = small_project.maintd("up")
        assert (refused.code, "MAINTD_STATE_DIR: " in refused.err) == (1, True)
        with small_project.runtime() as runtime:
            settings = runtime.settings.model_copy(
                update={"state_dir": Path(volatile), "state_dir_volatile": "refuse"}
            )
            worker = Worker(replace(runtime, settings=settings), stopping=lambda: False)
            with closing(worker), pytest.raises(Problems):
                worker.ready_to_mail()
        environ["MAINTD_STATE_DIR_VOLATILE"] = "allow"
        assert verdicts(small_project.maintd("check", "--json"))["state directory"] == "ok"


def test_a_state_directory_without_room_is_told_as_the_system_tells_it(small_project: Project) -> None:
    small_project.settings.state_dir.mkdir(exist_ok=True)
    of_files = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60 * 1024, of_files[1]))
    try:
        found = check(
            small_project.settings, clock=SystemClock(), offline=False, embedded_server=lambda: None
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, of_files)
    [state_dir] = [one for one in found if one.what == "state directory"]
    assert state_dir.verdict is Verdict.PROBLEM
    assert os.strerror(errno.EFBIG) in state_dir.problems[0].what


def test_a_redis_that_is_away_is_told_by_where_it_should_be(small_project: Project) -> None:
    small_project.maintd.environ["MAINTD_REDIS_URL"] = DEAD
    assert "MAINTD_REDIS_URL" in small_project.maintd("timers").err
    del small_project.maintd.environ["MAINTD_REDIS_URL"]
    assert "is `maintd up` running?" in small_project.maintd("timers").err


def test_an_env_file_that_is_a_directory_is_as_wrong_as_one_that_is_missing(
    bare: Maintd, tmp_path: Path
) -> None:
    outcomes = [bare("--env-file", str(path), "settings") for path in (tmp_path, tmp_path / "none.env")]
    assert [outcome.code for outcome in outcomes] == [1, 1]
    assert all("the env file cannot be read" in outcome.err for outcome in outcomes)


def test_a_name_of_any_length_leaves_the_message_readable(small_project: Project) -> None:
    name = "x" * 5_000
    small_project.jobs.write_text(f'[{name}]\nkind = "ratings"\n')
    refused = small_project.maintd("check", "--offline")
    assert "is not a name for a job" in refused.err
    assert max(map(len, refused.err.splitlines())) < 400
