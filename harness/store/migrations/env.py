"""Alembic's environment. The open connection, and with it the transaction, is that of ``harness.store.migrate``."""

from alembic import context

from harness.store.tables import METADATA, REVISIONS

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=REVISIONS.name
)
with context.begin_transaction():
    context.run_migrations()
