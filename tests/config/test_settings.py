from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from maintd.config.load import bare_environment, from_process, load_settings
from maintd.config.reference import reference
from maintd.config.secret_url import shown_url
from maintd.config.settings import Settings
from maintd.errors import Problems

SECRET = "hunter2"
SECRET_URLS = {
    "MAINTD_DATABASE_URL": f"postgresql://maintd:{SECRET}@db/app",
    "MAINTD_REDIS_URL": f"rediss://:{SECRET}@redis:6379/1",
    "MAINTD_SMTP_URL": f"smtp+starttls://news:{SECRET}@relay.example:587",
    "MAINTD_SOURCE_APP_URL": f"postgresql://app@db/app?password={SECRET}&sslmode=require",
}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process stands: an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*, env_file: Path | None = None, home: str = "/home/ops", **environ: str) -> Settings:
    return load_settings(environ={"HOME": home, **environ}, env_file=env_file)


def came_from(settings: Settings) -> dict[str, str]:
    """Where each value came from, by variable."""
    return {variable: place for variable, _, place in settings.public()}


def refused(**environ: str) -> list[str]:
    with pytest.raises(Problems) as raised:
        load(**environ)
    return [str(problem) for problem in raised.value.problems]


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_everything_has_a_default(directory: Path) -> None:
    settings = load()
    assert settings.state_dir == Path("/home/ops/.local/state/maintd")
    assert settings.database_url.get_secret_value() == "sqlite:////home/ops/.local/state/maintd/ledger.db"
    assert settings.redis_url is None
    assert settings.source_urls == {}
    assert settings.smtp_url.get_secret_value() == "smtp://127.0.0.1:25"
    assert settings.smtp_hello
    assert settings.lease == timedelta(seconds=30)
    assert settings.schedules_dir == directory / "schedules"
    assert settings.log_level == "info"
    assert {place for _, _, place in settings.public()} == {"default"}


# Where values come from


def test_the_environment_wins_over_credentials_and_these_over_the_env_file(directory: Path) -> None:
    credentials = written(directory / "credentials" / "smtp_url", "smtp://credential").parent
    written(credentials / "mail_batch", "8")
    env_file = written(
        directory / "some.env",
        "MAINTD_SMTP_URL=smtp://file\nMAINTD_MAIL_BATCH=7\n# note\nMAINTD_LEASE=40 s\n",
    )
    settings = load(env_file=env_file, CREDENTIALS_DIRECTORY=str(credentials), MAINTD_MAIL_BATCH="9")
    assert settings.mail_batch == 9
    assert settings.smtp_url.get_secret_value() == "smtp://credential"
    assert settings.lease == timedelta(seconds=40)
    assert came_from(settings)["MAINTD_MAIL_BATCH"] == "environment"
    assert came_from(settings)["MAINTD_SMTP_URL"] == "credential smtp_url"
    assert came_from(settings)["MAINTD_LEASE"] == f"{env_file}:4"
    assert came_from(settings)["MAINTD_TICK"] == "default"


@pytest.mark.parametrize("name", ["smtp_url", "SMTP_URL", "maintd_smtp_url", "MAINTD_SMTP_URL"])
def test_a_credential_is_named_like_its_setting(directory: Path, name: str) -> None:
    written(directory / "credentials" / name, "smtp://relay\n")
    settings = load(CREDENTIALS_DIRECTORY=str(directory / "credentials"))
    assert settings.smtp_url.get_secret_value() == "smtp://relay"
    assert came_from(settings)["MAINTD_SMTP_URL"] == f"credential {name}"


def test_a_source_may_be_a_credential(directory: Path) -> None:
    written(directory / "credentials" / "source_app_url", "sqlite:////srv/app.db")
    settings = load(CREDENTIALS_DIRECTORY=str(directory / "credentials"))
    assert settings.source_urls["app"].get_secret_value() == "sqlite:////srv/app.db"


def test_credentials_of_others_are_left_alone(directory: Path) -> None:
    written(directory / "credentials" / "tls.key", "private")
    load(CREDENTIALS_DIRECTORY=str(directory / "credentials"))


def test_a_misspelt_credential_that_claims_to_be_ours_is_refused(directory: Path) -> None:
    written(directory / "credentials" / "maintd_smtp_ulr", "smtp://relay")
    (problem,) = refused(CREDENTIALS_DIRECTORY=str(directory / "credentials"))
    assert "(credential maintd_smtp_ulr)" in problem
    assert 'did you mean "MAINTD_SMTP_URL"' in problem


def test_a_credential_under_two_names_is_refused(directory: Path) -> None:
    written(directory / "credentials" / "smtp_url", "smtp://a")
    written(directory / "credentials" / "maintd_smtp_url", "smtp://b")
    (problem,) = refused(CREDENTIALS_DIRECTORY=str(directory / "credentials"))
    assert "keep one" in problem


def test_a_value_may_stand_in_a_file_of_its_own(directory: Path) -> None:
    secret = written(directory / "relay", "smtp://relay\n")
    env_file = written(
        directory / "some.env", f"MAINTD_REDIS_URL_FILE={written(directory / 'redis', 'redis://r')}\n"
    )
    settings = load(env_file=env_file, MAINTD_SMTP_URL_FILE=str(secret))
    assert settings.smtp_url.get_secret_value() == "smtp://relay"
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://r"
    assert came_from(settings)["MAINTD_SMTP_URL"] == f"{secret} (MAINTD_SMTP_URL_FILE, environment)"
    assert (
        came_from(settings)["MAINTD_REDIS_URL"]
        == f"{directory / 'redis'} (MAINTD_REDIS_URL_FILE, {env_file}:1)"
    )


def test_a_value_and_its_file_in_one_place_are_refused(directory: Path) -> None:
    secret = written(directory / "relay", "smtp://relay")
    written(directory / "maintd.env", f"MAINTD_REDIS_URL=redis://r\nMAINTD_REDIS_URL_FILE={secret}\n")
    assert refused(MAINTD_SMTP_URL="smtp://relay", MAINTD_SMTP_URL_FILE=str(secret)) == [
        "MAINTD_SMTP_URL_FILE (environment): it is also given as MAINTD_SMTP_URL (environment); keep one of them",
        "MAINTD_REDIS_URL_FILE (maintd.env:2): it is also given as MAINTD_REDIS_URL (maintd.env:1); keep one of them",
    ]


def test_a_value_in_one_place_and_its_file_in_a_lower_one_are_no_conflict(directory: Path) -> None:
    env_file = written(directory / "some.env", "MAINTD_SMTP_URL_FILE=/root/nobody-may-read-this\n")
    settings = load(env_file=env_file, MAINTD_SMTP_URL="smtp://relay")
    assert came_from(settings)["MAINTD_SMTP_URL"] == "environment"


def test_a_secret_given_as_a_file_name_by_mistake_is_not_repeated() -> None:
    (problem,) = refused(MAINTD_SMTP_URL_FILE=SECRET_URLS["MAINTD_SMTP_URL"])
    assert "MAINTD_SMTP_URL_FILE (environment): the file it names cannot be read" in problem
    assert SECRET not in problem


# The env file


def test_the_env_file_is_the_argument_else_the_variable_else_the_one_that_lies_here(directory: Path) -> None:
    here = written(directory / "maintd.env", "MAINTD_MAIL_BATCH=1\n")
    named = written(directory / "named.env", "MAINTD_MAIL_BATCH=2\n")
    given = written(directory / "given.env", "MAINTD_MAIL_BATCH=3\n")
    assert came_from(load())["MAINTD_MAIL_BATCH"] == f"{here.name}:1"
    assert load(MAINTD_ENV_FILE=str(named)).mail_batch == 2
    assert load(MAINTD_ENV_FILE=str(named), env_file=given).mail_batch == 3
    assert load(MAINTD_ENV_FILE="").mail_batch == 2_000


def test_an_env_file_that_was_asked_for_must_exist() -> None:
    assert refused(MAINTD_ENV_FILE="absent.env")[0].startswith("absent.env: the env file cannot be read")


def test_an_env_file_holds_nothing_but_settings(directory: Path) -> None:
    written(directory / "maintd.env", "SMTP_URL=smtp://relay\nMAINTD_ENV_FILE=other.env\n")
    problems = refused()
    assert problems[0].startswith("SMTP_URL (maintd.env:1): there is no such setting")
    assert problems[1].startswith("MAINTD_ENV_FILE (maintd.env:2): there is no such setting")


# Errors


def test_a_misspelt_name_is_refused_with_the_nearest_one() -> None:
    assert refused(MAINTD_LAESE="30 s") == [
        'MAINTD_LAESE (environment): there is no such setting; did you mean "MAINTD_LEASE"?'
    ]


def test_the_prefix_of_all_names_makes_none_of_them_nearer() -> None:
    (problem,) = refused(MAINTD_FOO="1")
    assert "did you mean" not in problem


def test_all_errors_are_told_at_once(directory: Path) -> None:
    written(
        directory / "maintd.env", "export A=1\nMAINTD_TICK=soon\nMAINTD_MAIL_BATCH=many\nMAINTD_NONSENSE=1\n"
    )
    problems = refused(
        MAINTD_LEASE="10 s",
        MAINTD_STATE_DIR="~/state",
        MAINTD_LOG_LEVEL="loud",
        MAINTD_SOURCE_APP_URL="mysql://h/db",
        MAINTD_REDIS_URL="",
    )
    assert [problem.partition(": ")[0] for problem in problems] == [
        "maintd.env:1",
        "MAINTD_NONSENSE (maintd.env:4)",
        "MAINTD_REDIS_URL (environment)",
        "MAINTD_STATE_DIR (environment)",
        "MAINTD_SOURCE_APP_URL (environment)",
        "MAINTD_MAIL_BATCH (maintd.env:3)",
        "MAINTD_LEASE (environment)",
        "MAINTD_TICK (maintd.env:2)",
        "MAINTD_LOG_LEVEL (environment)",
    ]


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("MAINTD_SMTP_URL", "", "empty"),
        ("MAINTD_SMTP_URL", "smtp://relay ", "begins or ends with a space"),
        ("MAINTD_SMTP_URL", "smtp://re\nlay", "line break"),
        ("MAINTD_SMTP_URL", "http://relay", "must begin with smtp:// or smtp+starttls:// or smtps://"),
        ("MAINTD_SMTP_URL", "relay:25", "must begin with smtp://"),
        ("MAINTD_REDIS_URL", "redis+socket:///run/redis.sock", "must begin with redis:// or rediss:// or unix://"),
        ("MAINTD_DATABASE_URL", "mysql://h/db", "must begin with sqlite://"),
        ("MAINTD_SOURCE_APP_URL", "redis://h/0", "must begin with sqlite://"),
        ("MAINTD_DATABASE_URL", "postgresql://u:p/w@h/db", "percent-encode"),
        ("MAINTD_SMTP_URL", "smtp://relay:smtp", "wrong port"),
        ("MAINTD_SMTP_URL", "smtp://relay:99999/", "wrong port"),
        ("MAINTD_SMTP_URL", "smtps://u:p@[::1]:0", "wrong port"),
        ("MAINTD_SMTP_URL", "smtp://u:p#w@relay:25", "percent-encode"),
        ("MAINTD_SMTP_CONNECTIONS", "0", "greater than or equal to 1"),
        ("MAINTD_SMTP_CONNECTIONS", "101", "less than or equal to 100"),
        ("MAINTD_MAIL_PROCESSES", "two", "must be a whole number"),
        ("MAINTD_SMTP_CONNECT_TIMEOUT", "30", "is not a duration"),
        ("MAINTD_SMTP_HELLO", "two words", "RFC 5321"),
        ("MAINTD_STATE_DIR", "~/maintd", "begins with ~"),
        ("MAINTD_MAIL_FROM", "Acme", "is not one sender"),
        ("MAINTD_MAIL_FROM", "a@example.org, b@example.org", "is not one sender"),
        ("MAINTD_MAIL_REDIRECT", "Ops <ops@example.org>", "is not one bare address"),
        ("MAINTD_LOG_FORMAT", "xml", "must be 'auto', 'plain' or 'json'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_place_and_the_reason(
    variable: str, text: str, reason: str
) -> None:
    (problem,) = refused(**{variable: text})
    assert problem.startswith(f"{variable} (environment): ")
    assert reason in problem


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"MAINTD_HEARTBEAT": "11 s"},
            "MAINTD_LEASE (default): is 30 s and must be at least three times MAINTD_HEARTBEAT (11 s)",
        ),
        (
            {"MAINTD_BEAT_LOCK": "4 s"},
            "MAINTD_BEAT_LOCK (environment): is 4 s and must be at least five times MAINTD_TICK (1 s)",
        ),
        (
            {"MAINTD_VISIBILITY_TIMEOUT": "30 s"},
            "MAINTD_VISIBILITY_TIMEOUT (environment): is 30 s and must be longer than MAINTD_LEASE (30 s)",
        ),
        (
            {"MAINTD_SMTP_DOT_TIMEOUT": "59 min 30 s"},
            "MAINTD_VISIBILITY_TIMEOUT (default): is 1 h and must be longer than MAINTD_WAKE_BUDGET (30 s) "
            "and MAINTD_SMTP_DOT_TIMEOUT (59 min 30 s) together",
        ),
    ],
)
def test_durations_that_cannot_go_together_are_refused_by_both_names(
    environ: dict[str, str], problem: str
) -> None:
    assert refused(**environ) == [problem]


def test_durations_may_stand_at_their_borders() -> None:
    load(
        MAINTD_HEARTBEAT="10 s",
        MAINTD_TICK="3 s",
        MAINTD_WAKE_BUDGET="2999 s",
        MAINTD_MAIL_FROM='"Acme, Inc." <news@example.org>',
        MAINTD_MAIL_REDIRECT="ops@localhost",
        MAINTD_LOG_LEVEL="WARNING",
        MAINTD_SMTP_HELLO="[IPv6:::1]",
        MAINTD_SMTP_CONNECTIONS="100",
    )


# The state directory


@pytest.mark.parametrize(
    ("environ", "state_dir"),
    [
        ({}, "/home/ops/.local/state/maintd"),
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/maintd"),
        ({"XDG_STATE_HOME": "relative"}, "/home/ops/.local/state/maintd"),
        ({"XDG_STATE_HOME": "/xdg", "STATE_DIRECTORY": "/var/lib/maintd:/var/lib/other"}, "/var/lib/maintd"),
        ({"STATE_DIRECTORY": "/var/lib/maintd", "MAINTD_STATE_DIR": "/srv/state"}, "/srv/state"),
    ],
)
def test_the_state_directory_is_the_given_one_else_of_systemd_else_of_the_user(
    environ: dict[str, str], state_dir: str
) -> None:
    settings = load(**environ)
    assert settings.state_dir == Path(state_dir)
    assert settings.database_url.get_secret_value() == f"sqlite:///{state_dir}/ledger.db"


def test_a_state_directory_of_systemd_is_told_from_a_default() -> None:
    settings = load(STATE_DIRECTORY="/var/lib/maintd")
    assert came_from(settings)["MAINTD_STATE_DIR"] == "STATE_DIRECTORY"


def test_a_process_without_a_home_must_be_told_its_state_directory() -> None:
    assert refused(home="") == [
        "MAINTD_STATE_DIR (default): neither it nor STATE_DIRECTORY, XDG_STATE_HOME or HOME is set; give a path"
    ]


def test_paths_do_not_depend_on_later_changes_of_directory(directory: Path) -> None:
    assert load(MAINTD_STATE_DIR="state").state_dir == directory / "state"


# Secrets


def everything_shown(settings: Settings) -> str:
    return "\n".join([repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()])


def test_no_secret_is_ever_shown() -> None:
    settings = load(**SECRET_URLS)
    assert SECRET not in everything_shown(settings)
    assert SECRET not in str(settings.public())
    shown = {variable: value for variable, value, _ in settings.public()}
    assert shown["MAINTD_DATABASE_URL"] == "postgresql://maintd:***@db/app"
    assert shown["MAINTD_REDIS_URL"] == "rediss://:***@redis:6379/1"
    assert shown["MAINTD_SMTP_URL"] == "smtp+starttls://news:***@relay.example:587"
    assert shown["MAINTD_SOURCE_APP_URL"] == "postgresql://app@db/app?password=***&sslmode=require"


@pytest.mark.parametrize("variable", SECRET_URLS)
@pytest.mark.parametrize("spoil", ["x{}", "{} ", "{}\n\n", "\x00{}", "http://u:{}@h"])
def test_no_error_repeats_a_secret(variable: str, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Problems) as raised:
        load(**{variable: spoil.format(SECRET_URLS[variable])})
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert raised.value.__context__ is None
    assert SECRET not in caplog.text


def test_settings_made_by_hand_do_not_repeat_a_secret_either() -> None:
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate(
            {"state_dir": "/srv", "smtp_url": f"http://u:{SECRET}@h", "mail_batch": SECRET}
        )
    assert SECRET not in str(raised.value)


secrets = st.text(st.sampled_from("pw:/?#@%&= []$"), min_size=1, max_size=6).map(
    f"{SECRET}{{}}{SECRET}".format
)


@given(password=secrets, rest=st.sampled_from(["h", "h:25", "h/db?x=y", "/run/redis.sock", "[::1]:25"]))
def test_a_password_is_masked_however_badly_it_is_written(password: str, rest: str) -> None:
    shown = shown_url(f"smtp://user:{password}@{rest}")
    assert SECRET not in shown
    assert shown == f"smtp://user:***@{rest}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/a@b:c/ledger.db", "sqlite:////srv/a@b:c/ledger.db"),
        ("smtp://relay:25", "smtp://relay:25"),
        ("smtp://user@relay", "smtp://user@relay"),
        ("smtp://token:token@relay", "smtp://***:***@relay"),
        (
            "smtp://a:b@x?weight=2  smtps://y smtp+starttls://c:d@z",
            "smtp://a:***@x?weight=2 smtps://y smtp+starttls://c:***@z",
        ),
        ("unix:///run/r.sock?db=1&Password=x&y=2", "unix:///run/r.sock?db=1&Password=***&y=2"),
    ],
)
def test_only_what_is_secret_is_masked(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize("wrong", [f"http://u:{SECRET}@h", f"u:{SECRET}@h", f"smtp://u:{SECRET}/@h"])
def test_each_of_several_relays_is_looked_at(wrong: str) -> None:
    assert load(MAINTD_SMTP_URL="smtp://a?weight=0 smtps://b").smtp_url
    (problem,) = refused(MAINTD_SMTP_URL=f"smtp://a {wrong}")
    assert SECRET not in problem


# Handing settings on


def test_a_child_loads_the_very_values_of_its_parent(directory: Path) -> None:
    env_file = written(
        directory / "maintd.env", "MAINTD_LEASE=1 min 30 s\nMAINTD_MAIL_REDIRECT=ops@example.org\n"
    )
    parent = load(STATE_DIRECTORY="/var/lib/maintd", MAINTD_TICK="1500 ms", **SECRET_URLS)
    env_file.write_text("MAINTD_LEASE=2 min\nMAINTD_MAIL_FROM=late@example.org\n")
    child = load_settings(environ=parent.environment(), env_file=None)
    assert values(child) == values(parent)
    assert child.mail_redirect == "ops@example.org"


def values(settings: Settings) -> Mapping[str, object]:
    return {field: getattr(settings, field) for field in Settings.model_fields}


def test_what_a_child_inherits_holds_none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINTD_SMTP_URL", SECRET_URLS["MAINTD_SMTP_URL"])
    monkeypatch.setenv("TZ", "UTC")
    assert bare_environment()["TZ"] == "UTC"
    assert not any(name.startswith("MAINTD_") for name in bare_environment())


def test_a_process_reads_its_own_environment(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("MAINTD_STATE_DIR", "/srv/state")
    assert from_process().state_dir == Path("/srv/state")


# The reference


def test_every_setting_is_documented() -> None:
    documented = {entry.name: entry for entry in reference()}
    variables = {variable for variable, _, _ in load().public()}
    families = {"MAINTD_SOURCE_<NAME>_URL", "MAINTD_LANE_<NAME>"}
    assert documented.keys() == variables | families | {"MAINTD_ENV_FILE"}
    for entry in documented.values():
        assert entry.description
        assert entry.type_text
        assert entry.default_text


def test_the_reference_shows_types_and_defaults_as_people_write_them() -> None:
    shown = {entry.name: (entry.type_text, entry.default_text) for entry in reference()}
    assert shown["MAINTD_LEASE"] == ("duration", "30 s")
    assert shown["MAINTD_SMTP_CONNECTIONS"] == ("number, 1 to 100", "8")
    assert shown["MAINTD_SMTP_URL"] == ("URL", "smtp://127.0.0.1:25")
    assert shown["MAINTD_REDIS_URL"] == ("URL", "none")
    assert shown["MAINTD_SOURCE_<NAME>_URL"] == ("URL", "none")
    assert shown["MAINTD_MAIL_REDIRECT"] == ("text", "none")
    assert shown["MAINTD_SCHEDULES_DIR"] == ("path", "./schedules")
    assert shown["MAINTD_LOG_LEVEL"] == ("debug | info | warning | error", "info")


# Lanes


def test_a_lane_has_a_rate_and_domains_in_the_one_form_that_addresses_have() -> None:
    settings = load(
        MAINTD_LANE_BIG="20/s GMAIL.com googlemail.com gmail.com", MAINTD_LANE_BOOKS="1/min Bücher.example"
    )
    assert {name: str(lane) for name, lane in settings.lanes.items()} == {
        "big": "20/s gmail.com googlemail.com",
        "books": "1/min xn--bcher-kva.example",
    }
    assert load_settings(environ=settings.environment(), env_file=None).lanes == settings.lanes


def test_a_lane_may_stand_in_a_file_of_its_own(directory: Path) -> None:
    file = written(directory / "lane", "20/s gmail.com\n")
    assert list(load(MAINTD_LANE_BIG_FILE=str(file)).lanes) == ["big"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("20/s", "has a rate and no domain"),
        ("gmail.com 20/s", '"gmail.com" is not a rate'),
        ("0/s gmail.com", "would let nothing through"),
        ("20/s ada@gmail.com", '"ada@gmail.com" is not a domain'),
    ],
)
def test_a_lane_that_cannot_be_read_is_refused_with_its_cure(text: str, reason: str) -> None:
    (problem,) = refused(MAINTD_LANE_BIG=text)
    assert problem.startswith("MAINTD_LANE_BIG (environment): ")
    assert reason in problem


def test_a_domain_is_in_one_lane_only() -> None:
    assert refused(MAINTD_LANE_A="1/s x.example", MAINTD_LANE_B="2/s y.example X.example") == [
        "MAINTD_LANE_<NAME>: x.example is in the lanes a and b; leave it in one of them"
    ]


def test_the_limit_of_all_mail_is_a_rate() -> None:
    assert str(load(MAINTD_SMTP_LIMIT="50/s").smtp_limit) == "50/s"
    assert "leave it out for no limit" in refused(MAINTD_SMTP_LIMIT="0/s")[0]
