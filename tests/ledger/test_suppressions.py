from __future__ import annotations

from maintd.database import Database
from maintd.ledger import suppressions
from tests.ledgers import MINUTE, NOW, key_of, race


def test_a_recipient_is_listed_once_and_the_first_reason_stays(ledger: Database) -> None:
    with ledger.write() as connection:
        assert suppressions.add(connection, key_of(1), reason="asked", now=NOW)
        assert not suppressions.add(connection, key_of(1), reason="bounced", now=NOW + MINUTE)
        assert suppressions.find(connection, key_of(1)) == ("asked", NOW)
        assert suppressions.find(connection, key_of(2)) is None


def test_a_recipient_is_taken_off_the_list_once(ledger: Database) -> None:
    with ledger.write() as connection:
        suppressions.add(connection, key_of(1), reason="asked", now=NOW)
        assert suppressions.remove(connection, key_of(1))
        assert not suppressions.remove(connection, key_of(1))
        assert suppressions.find(connection, key_of(1)) is None


def test_of_many_that_list_a_recipient_one_does(ledger: Database) -> None:
    def add(number: int) -> bool:
        with ledger.write() as connection:
            return suppressions.add(connection, key_of(1), reason=str(number), now=NOW)

    assert sum(race(5, add)) == 1
