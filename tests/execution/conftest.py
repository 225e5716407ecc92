"""The ledgers and surroundings that these tests share."""

from tests.execution.surroundings import acts as acts
from tests.execution.surroundings import clock as clock
from tests.execution.surroundings import runtime as runtime
from tests.ledgers import ledger as ledger
from tests.ledgers import ledger_url as ledger_url
from tests.ledgers import migrated_postgresql as migrated_postgresql
from tests.ledgers import migrated_sqlite as migrated_sqlite
