"""Where in its own history the ledger is; lanes, limits and urgency of mail.

Revision: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    timeline = op.create_table(
        "timeline",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "epoch",
            sa.Integer(),
            nullable=False,
            comment="moved when a person accepts a ledger that went back in time",
        ),
        sa.Column(
            "sequence",
            sa.BigInteger(),
            nullable=False,
            comment="moved by every commit that lets something happen outside",
        ),
        sa.Column(
            "held",
            sa.Text(),
            nullable=True,
            comment="why no mail is sent and no job fires; none: all is well",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timeline")),
    )
    op.bulk_insert(timeline, [{"id": 1, "epoch": 0, "sequence": 0, "held": None}])
    op.create_table(
        "lines",
        sa.Column("campaign_id", _ID, autoincrement=False, nullable=False),
        sa.Column("lane", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column(
            "cut", sa.Integer(), nullable=False, comment="its deliveries below this ordinal were batched"
        ),
        sa.Column("tail", sa.Integer(), nullable=False, comment="the ordinal after its last delivery"),
        sa.Column(
            "enrolled",
            sa.Integer(),
            nullable=False,
            comment="its tail when enrolment ended; beyond are those sent again",
        ),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name=op.f("fk_lines_campaign_id")),
        sa.PrimaryKeyConstraint("campaign_id", "lane", name=op.f("pk_lines")),
    )
    # Every campaign has a line for whoever has no other.
    op.execute(
        "INSERT INTO lines (campaign_id, lane, name, cut, tail, enrolled) "
        "SELECT id, 0, '*', cut, tail, audience - duplicates FROM campaigns"
    )
    op.drop_column("campaigns", "cut")
    op.create_table(
        "allowances",
        sa.Column("name", sa.String(length=127), nullable=False),
        sa.Column(
            "used", _JSON, nullable=False, comment="what was taken of late, or for how long nothing may be"
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_allowances")),
    )
    op.add_column("campaigns", sa.Column("urgent", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column(
        "deliveries",
        sa.Column(
            "lane",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="of its campaign's lines; 0: the one of whoever has no other",
        ),
    )
    op.add_column(
        "deliveries",
        sa.Column(
            "failure",
            sa.String(16),
            nullable=True,
            comment="what kind the last one was, which decides the wait",
        ),
    )
    op.add_column(
        "deliveries",
        sa.Column(
            "deferred_at", sa.DateTime(timezone=True), nullable=True, comment="when it was first put off"
        ),
    )
    op.add_column(
        "campaigns",
        sa.Column(
            "sending_since",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when it last began to send: enrolled, or resumed",
        ),
    )
    op.create_index(
        "ix_deliveries_lane",
        "deliveries",
        ["campaign_id", "lane", "ordinal"],
        unique=False,
        sqlite_where=sa.text("lane > 0"),
        postgresql_where=sa.text("lane > 0"),
    )
    op.add_column("batches", sa.Column("lane", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column(
        "batches",
        sa.Column(
            "losses", sa.SmallInteger(), server_default="0", nullable=False, comment="holders that vanished"
        ),
    )


def downgrade() -> None:
    op.drop_column("batches", "losses")
    op.drop_column("batches", "lane")
    op.drop_index("ix_deliveries_lane", table_name="deliveries")
    op.drop_column("campaigns", "sending_since")
    op.drop_column("deliveries", "deferred_at")
    op.drop_column("deliveries", "failure")
    op.drop_column("deliveries", "lane")
    op.drop_column("campaigns", "urgent")
    op.drop_table("allowances")
    op.add_column(
        "campaigns",
        sa.Column(
            "cut",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="ordinals below this were batched",
        ),
    )
    op.execute("UPDATE campaigns SET cut = (SELECT min(cut) FROM lines WHERE campaign_id = campaigns.id)")
    op.drop_table("lines")
    op.drop_table("timeline")
