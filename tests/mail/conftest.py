"""The ledgers that these tests share."""

from tests.ledgers import ledger as ledger
from tests.ledgers import ledger_url as ledger_url
from tests.ledgers import migrated_postgresql as migrated_postgresql
from tests.ledgers import migrated_sqlite as migrated_sqlite
