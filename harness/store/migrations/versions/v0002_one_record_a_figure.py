"""One record for each figure of a run: a later one replaces it, so that a run's records are counted and read without a
search for the latest. Records that a later one had superseded, which no reader has shown, are deleted."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        "DELETE FROM plumbline_records WHERE id NOT IN "
        '(SELECT max(id) FROM plumbline_records GROUP BY run, "case", measure, quantity)'
    )
    op.create_index("plumbline_key", "plumbline_records", ["run", "case", "measure", "quantity"], unique=True)
    op.execute("UPDATE plumbline_schema SET version = 2")  # releases without Alembic refuse the store from now on
