"""The first schema.

Revision: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column(
            "spec", _JSON, nullable=False, comment="header and kind's keys, in the form of the job file"
        ),
        sa.Column(
            "files",
            _JSON,
            nullable=False,
            comment="texts the job depends on, frozen at apply: SQL, templates",
        ),
        sa.Column(
            "digest",
            sa.String(length=64),
            nullable=False,
            comment="of spec and files: whether a file differs",
        ),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "cursor_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="no instant at or before this is ever created but by backfill",
        ),
        sa.Column(
            "next_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="first instant after the cursor; none: never due by itself",
        ),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_next_at"), "jobs", ["next_at"], unique=False)
    op.create_table(
        "meta",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_meta")),
        comment="ledger_id; recipient_key (hex), with which addresses are digested; jobs_stamp, moved by every apply",
    )
    op.create_table(
        "misses",
        sa.Column("id", _ID, nullable=False),
        sa.Column("job", sa.String(length=63), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("exact", sa.Boolean(), nullable=False, comment="false: at least that many"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_misses")),
    )
    op.create_index(op.f("ix_misses_job_last_at"), "misses", ["job", "last_at"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", _ID, nullable=False),
        sa.Column("job", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("occurrence", sa.String(length=160), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column(
            "nominal_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="the instant it stands for, however late it runs",
        ),
        sa.Column("options", _JSON, nullable=False, comment="timezone; new_edition if a person asked"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "losses", sa.Integer(), server_default="0", nullable=False, comment="claims whose worker vanished"
        ),
        sa.Column("revision", sa.Integer(), nullable=True, comment="of the job, as last claimed"),
        sa.Column("token", sa.String(length=32), nullable=True),
        sa.Column("counter", sa.Integer(), server_default="0", nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=True, comment="host:pid of the claim"),
        sa.Column("parent_id", _ID, nullable=True),
        sa.Column(
            "after",
            _JSON,
            nullable=True,
            comment="of a step: the jobs of the same pipeline run that must succeed first",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result", _JSON, nullable=True, comment="what was counted"),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it failed, waits, or did not run"),
        sa.ForeignKeyConstraint(["parent_id"], ["runs.id"], name=op.f("fk_runs_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("job", "occurrence", name=op.f("uq_runs_job_occurrence")),
    )
    op.create_index(op.f("ix_runs_parent_id"), "runs", ["parent_id"], unique=False)
    op.create_index(op.f("ix_runs_state_queue_due_at"), "runs", ["state", "queue", "due_at"], unique=False)
    op.create_table(
        "suppressions",
        sa.Column("recipient_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("recipient_key", name=op.f("pk_suppressions")),
    )
    op.create_table(
        "templates",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("files", _JSON, nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_templates")),
    )
    op.create_table(
        "campaigns",
        sa.Column("id", _ID, nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False, comment="random; part of every Message-ID"),
        sa.Column("job", sa.String(length=63), nullable=False),
        sa.Column("edition", sa.String(length=160), nullable=False),
        sa.Column("run_id", _ID, nullable=False, comment="the run that works on it"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "spec", _JSON, nullable=False, comment="the job's keys as they were when this edition was made"
        ),
        sa.Column("template", sa.String(length=64), nullable=False),
        sa.Column("shared", _JSON, nullable=False, comment="the same for every recipient, queried once"),
        sa.Column(
            "content",
            sa.String(length=64),
            nullable=False,
            comment="digest of everything that decides what is sent",
        ),
        sa.Column(
            "dated_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="the Date of every message and of every attempt",
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "audience", sa.Integer(), server_default="0", nullable=False, comment="rows of the audience"
        ),
        sa.Column(
            "duplicates",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="rows whose address was there",
        ),
        sa.Column(
            "cut",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="ordinals below this were batched",
        ),
        sa.Column("tail", sa.Integer(), server_default="0", nullable=False, comment="the next free ordinal"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_campaigns_run_id")),
        sa.ForeignKeyConstraint(["template"], ["templates.digest"], name=op.f("fk_campaigns_template")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaigns")),
        sa.UniqueConstraint("job", "edition", name=op.f("uq_campaigns_job_edition")),
        sa.UniqueConstraint("uid", name=op.f("uq_campaigns_uid")),
    )
    op.create_index(op.f("ix_campaigns_state"), "campaigns", ["state"], unique=False)
    op.create_table(
        "batches",
        sa.Column("id", _ID, nullable=False),
        sa.Column("campaign_id", _ID, nullable=False),
        sa.Column("lo", sa.Integer(), nullable=False, comment="first ordinal"),
        sa.Column("hi", sa.Integer(), nullable=False, comment="ordinal after the last"),
        sa.Column("wire_hi", sa.Integer(), nullable=False, comment="below this a dot may have been written"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=True, comment="none: to be claimed"),
        sa.Column("counter", sa.Integer(), server_default="0", nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=True),
        sa.Column(
            "recorder", sa.String(length=48), nullable=True, comment="the flight recorder of its holder"
        ),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name=op.f("fk_batches_campaign_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index(op.f("ix_batches_campaign_id_state"), "batches", ["campaign_id", "state"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column("campaign_id", _ID, autoincrement=False, nullable=False),
        sa.Column(
            "ordinal",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="place in the campaign's line",
        ),
        sa.Column(
            "recipient_key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="digest of the canonical address",
        ),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True, comment="the application's own identifier"),
        sa.Column("fields", _JSON, nullable=False, comment="only the columns that the template uses"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column(
            "copies",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="doubts sent again by policy",
        ),
        sa.Column("failures", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "due_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="of a deferred one: when it comes back into the line",
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "phase",
            sa.String(length=8),
            nullable=True,
            comment="of the SMTP dialogue that the outcome belongs to",
        ),
        sa.Column("code", sa.SmallInteger(), nullable=True),
        sa.Column("enhanced", sa.String(length=16), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name=op.f("fk_deliveries_campaign_id")),
        sa.PrimaryKeyConstraint("campaign_id", "ordinal", name=op.f("pk_deliveries")),
        sa.UniqueConstraint(
            "campaign_id", "recipient_key", name=op.f("uq_deliveries_campaign_id_recipient_key")
        ),
    )
    op.create_index(
        "ix_deliveries_open",
        "deliveries",
        ["campaign_id", "state", "due_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('deferred', 'uncertain')"),
        postgresql_where=sa.text("state IN ('deferred', 'uncertain')"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_deliveries_open",
        table_name="deliveries",
        sqlite_where=sa.text("state IN ('deferred', 'uncertain')"),
        postgresql_where=sa.text("state IN ('deferred', 'uncertain')"),
    )
    op.drop_table("deliveries")
    op.drop_index(op.f("ix_batches_campaign_id_state"), table_name="batches")
    op.drop_table("batches")
    op.drop_index(op.f("ix_campaigns_state"), table_name="campaigns")
    op.drop_table("campaigns")
    op.drop_table("templates")
    op.drop_table("suppressions")
    op.drop_index(op.f("ix_runs_state_queue_due_at"), table_name="runs")
    op.drop_index(op.f("ix_runs_parent_id"), table_name="runs")
    op.drop_table("runs")
    op.drop_index(op.f("ix_misses_job_last_at"), table_name="misses")
    op.drop_table("misses")
    op.drop_table("meta")
    op.drop_index(op.f("ix_jobs_next_at"), table_name="jobs")
    op.drop_table("jobs")
