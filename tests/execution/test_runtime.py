from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from maintd.config.load import load_settings
from maintd.execution.runtime import open_runtime
from tests.ledgers import HandClock


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_transaction_on_the_ledger_stands_idle_no_longer_than_a_lease(
    ledger_url: str, tmp_path: Path
) -> None:
    environ = {
        "MAINTD_STATE_DIR": str(tmp_path),
        "MAINTD_DATABASE_URL": ledger_url,
        "MAINTD_LEASE": "20 s",
        "MAINTD_STATEMENT_TIMEOUT": "2 min",
    }
    settings = load_settings(environ=environ, env_file=None)
    with closing(open_runtime(settings, clock=HandClock())) as runtime:
        for transaction in (runtime.ledger.read, runtime.ledger.write):
            with transaction() as connection:
                found = [
                    connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                    for name in ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
                ]
            assert found == ["20s", "5s", "2min"]
