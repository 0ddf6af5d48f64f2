"""The tables of the releases without Alembic. A released revision is never edited."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("plumbline_schema", sa.Column("version", sa.Integer, nullable=False))
    op.create_table(
        "plumbline_runs",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("started", sa.Text, nullable=False),
        sa.Column("finished", sa.Text),
        sa.Column("environment", sa.JSON, nullable=False),
    )
    names = ("case", "topic", "variant", "engine", "topology", "workload", "dtype", "device", "measure", "quantity")
    op.create_table(
        "plumbline_records",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run", sa.Text, sa.ForeignKey("plumbline_runs.run"), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in names),
        sa.Column("value", sa.Double),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("law", sa.Double),
        sa.Column("bound", sa.Double),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("verdict", "reason", "direction")),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("recorded", sa.Text, nullable=False),
    )
    op.create_index("ix_plumbline_records_run", "plumbline_records", ["run"])
    op.create_index("plumbline_series", "plumbline_records", ["case", "measure", "quantity"])
    op.execute("INSERT INTO plumbline_schema VALUES (1)")
