"""The ledger's tables. In PostgreSQL they live in the schema `maintd`, in SQLite in a file of their own."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from maintd.database import Instant
from maintd.ledger.states import BatchState, CampaignState, Cause, DeliveryState, RunState

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite numbers only INTEGER primary keys by itself.
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# JSONB would re-order the keys of a stored spec; nothing is ever searched inside these.
_Json = sa.JSON().with_variant(postgresql.JSON(), "postgresql")


class StateText(sa.TypeDecorator[StrEnum]):
    """A state, kept as its own short word, so that the ledger reads well in any SQL client."""

    impl = sa.String(16)
    cache_ok = True

    def __init__(self, states: type[StrEnum]) -> None:
        super().__init__()
        self.states = states

    def process_bind_param(self, value: StrEnum | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else self.states(value)


meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    comment="ledger_id; recipient_key (hex), with which addresses are digested; jobs_stamp, moved by every apply",
)

timeline = sa.Table(
    "timeline",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column(
        "epoch",
        sa.Integer,
        nullable=False,
        comment="moved when a person accepts a ledger that went back in time",
    ),
    sa.Column(
        "sequence",
        sa.BigInteger,
        nullable=False,
        comment="moved by every commit that lets something happen outside",
    ),
    sa.Column("held", sa.Text, comment="why no mail is sent and no job fires; none: all is well"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("spec", _Json, nullable=False, comment="header and kind's keys, in the form of the job file"),
    sa.Column(
        "files", _Json, nullable=False, comment="texts the job depends on, frozen at apply: SQL, templates"
    ),
    sa.Column("digest", sa.String(64), nullable=False, comment="of spec and files: whether a file differs"),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("applied_at", Instant, nullable=False),
    sa.Column("cursor_at", Instant, comment="no instant at or before this is ever created but by backfill"),
    sa.Column("next_at", Instant, comment="first instant after the cursor; none: never due by itself"),
    sa.Column("paused_at", Instant),
    sa.Column("pause_reason", sa.Text),
    sa.Index(None, "next_at"),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("job", sa.String(63), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("occurrence", sa.String(160), nullable=False),
    sa.Column("cause", StateText(Cause), nullable=False),
    sa.Column(
        "nominal_at", Instant, nullable=False, comment="the instant it stands for, however late it runs"
    ),
    sa.Column("options", _Json, nullable=False, comment="timezone; new_edition if a person asked"),
    sa.Column("state", StateText(RunState), nullable=False),
    sa.Column("queue", sa.String(16), nullable=False),
    sa.Column("due_at", Instant, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column(
        "losses", sa.Integer, nullable=False, server_default="0", comment="claims whose worker vanished"
    ),
    sa.Column("revision", sa.Integer, comment="of the job, as last claimed"),
    sa.Column("token", sa.String(32)),
    sa.Column("counter", sa.Integer, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(128), comment="host:pid of the claim"),
    sa.Column("parent_id", _Id, sa.ForeignKey("runs.id")),
    sa.Column("after", _Json, comment="of a step: the jobs of the same pipeline run that must succeed first"),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("started_at", Instant),
    sa.Column("finished_at", Instant),
    sa.Column("result", _Json, comment="what was counted"),
    sa.Column("reason", sa.Text, comment="why it failed, waits, or did not run"),
    sa.UniqueConstraint("job", "occurrence"),
    sa.Index(None, "state", "queue", "due_at"),
    sa.Index(None, "parent_id"),
)

misses = sa.Table(
    "misses",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("job", sa.String(63), nullable=False),
    sa.Column("first_at", Instant, nullable=False),
    sa.Column("last_at", Instant, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("exact", sa.Boolean, nullable=False, comment="false: at least that many"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index(None, "job", "last_at"),
)

templates = sa.Table(
    "templates",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("files", _Json, nullable=False),
    sa.Column("stored_at", Instant, nullable=False),
)

campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("uid", sa.String(32), nullable=False, unique=True, comment="random; part of every Message-ID"),
    sa.Column("job", sa.String(63), nullable=False),
    sa.Column("edition", sa.String(160), nullable=False),
    sa.Column("run_id", _Id, sa.ForeignKey("runs.id"), nullable=False, comment="the run that works on it"),
    sa.Column("state", StateText(CampaignState), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column(
        "spec", _Json, nullable=False, comment="the job's keys as they were when this edition was made"
    ),
    sa.Column("template", sa.String(64), sa.ForeignKey("templates.digest"), nullable=False),
    sa.Column("shared", _Json, nullable=False, comment="the same for every recipient, queried once"),
    sa.Column(
        "content", sa.String(64), nullable=False, comment="digest of everything that decides what is sent"
    ),
    sa.Column("dated_at", Instant, nullable=False, comment="the Date of every message and of every attempt"),
    sa.Column("expires_at", Instant),
    sa.Column("urgent", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("audience", sa.Integer, nullable=False, server_default="0", comment="rows of the audience"),
    sa.Column(
        "duplicates", sa.Integer, nullable=False, server_default="0", comment="rows whose address was there"
    ),
    sa.Column("tail", sa.Integer, nullable=False, server_default="0", comment="the next free ordinal"),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("enrolled_at", Instant),
    sa.Column("sending_since", Instant, comment="when it last began to send: enrolled, or resumed"),
    sa.Column("finished_at", Instant),
    sa.UniqueConstraint("job", "edition"),
    sa.Index(None, "state"),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("campaign_id", _Id, sa.ForeignKey("campaigns.id"), primary_key=True, autoincrement=False),
    sa.Column(
        "ordinal", sa.Integer, primary_key=True, autoincrement=False, comment="place in the campaign's line"
    ),
    sa.Column("recipient_key", sa.LargeBinary(16), nullable=False, comment="digest of the canonical address"),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("recipient", sa.Text, comment="the application's own identifier"),
    sa.Column(
        "lane",
        sa.SmallInteger,
        nullable=False,
        server_default="0",
        comment="of its campaign's lines; 0: the one of whoever has no other",
    ),
    sa.Column("fields", _Json, nullable=False, comment="only the columns that the template uses"),
    sa.Column("state", StateText(DeliveryState), nullable=False),
    sa.Column(
        "copies", sa.SmallInteger, nullable=False, server_default="0", comment="doubts sent again by policy"
    ),
    sa.Column("failures", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("failure", sa.String(16), comment="what kind the last one was, which decides the wait"),
    sa.Column("deferred_at", Instant, comment="when it was first put off"),
    sa.Column("due_at", Instant, comment="of a deferred one: when it comes back into the line"),
    sa.Column("settled_at", Instant),
    sa.Column("phase", sa.String(8), comment="of the SMTP dialogue that the outcome belongs to"),
    sa.Column("code", sa.SmallInteger),
    sa.Column("enhanced", sa.String(16)),
    sa.Column("detail", sa.Text),
    sa.UniqueConstraint("campaign_id", "recipient_key"),
)
#: Says to the planner of SQLite that the index below holds every row that is asked for; it does not conclude that from
#: a bound value.
IS_OPEN = sa.text("deliveries.state IN ('deferred', 'uncertain')")
# The few that somebody still has to come back to; the many settled ones are not in this index.
sa.Index(
    "ix_deliveries_open",
    deliveries.c.campaign_id,
    deliveries.c.state,
    deliveries.c.due_at,
    sqlite_where=deliveries.c.state.in_([DeliveryState.DEFERRED, DeliveryState.UNCERTAIN]),
    postgresql_where=deliveries.c.state.in_([DeliveryState.DEFERRED, DeliveryState.UNCERTAIN]),
)
#: As `IS_OPEN`, of the index below.
HAS_LANE = sa.text("deliveries.lane > 0")
# Few deliveries have a lane of their own; a sparse range of them is found without walking all the others.
sa.Index(
    "ix_deliveries_lane",
    deliveries.c.campaign_id,
    deliveries.c.lane,
    deliveries.c.ordinal,
    sqlite_where=deliveries.c.lane > 0,
    postgresql_where=deliveries.c.lane > 0,
)

lines = sa.Table(
    "lines",
    metadata,
    sa.Column("campaign_id", _Id, sa.ForeignKey("campaigns.id"), primary_key=True, autoincrement=False),
    sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("cut", sa.Integer, nullable=False, comment="its deliveries below this ordinal were batched"),
    sa.Column("tail", sa.Integer, nullable=False, comment="the ordinal after its last delivery"),
    sa.Column(
        "enrolled",
        sa.Integer,
        nullable=False,
        comment="its tail when enrolment ended; beyond are those sent again",
    ),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("campaign_id", _Id, sa.ForeignKey("campaigns.id"), nullable=False),
    sa.Column("lane", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("lo", sa.Integer, nullable=False, comment="first ordinal"),
    sa.Column("hi", sa.Integer, nullable=False, comment="ordinal after the last"),
    sa.Column("wire_hi", sa.Integer, nullable=False, comment="below this a dot may have been written"),
    sa.Column("state", StateText(BatchState), nullable=False),
    sa.Column("token", sa.String(32), comment="none: to be claimed"),
    sa.Column("counter", sa.Integer, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(128)),
    sa.Column("recorder", sa.String(48), comment="the flight recorder of its holder"),
    sa.Column("losses", sa.SmallInteger, nullable=False, server_default="0", comment="holders that vanished"),
    sa.Index(None, "campaign_id", "state"),
)

suppressions = sa.Table(
    "suppressions",
    metadata,
    sa.Column("recipient_key", sa.LargeBinary(16), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("added_at", Instant, nullable=False),
)

allowances = sa.Table(
    "allowances",
    metadata,
    sa.Column("name", sa.String(127), primary_key=True),
    sa.Column(
        "used", _Json, nullable=False, comment="what was taken of late, or for how long nothing may be"
    ),
)
