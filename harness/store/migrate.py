"""Leads an older store to a newer revision by Alembic, which only this module imports: most sessions need none."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

MIGRATIONS = Path(__file__).parent / "migrations"


def known(revision: str, folder: Path = MIGRATIONS) -> bool:
    """Whether this Plumbline has the revision."""
    scripts = ScriptDirectory.from_config(_config(folder))
    return revision in {script.revision for script in scripts.walk_revisions()}


def stamp(connection: Connection, revision: str, folder: Path = MIGRATIONS) -> None:
    """Marks the store as one of that revision."""
    command.stamp(_config(folder, connection), revision)


def upgrade(connection: Connection, revision: str, folder: Path = MIGRATIONS) -> None:
    """Migrates in the connection's transaction, which the caller commits."""
    command.upgrade(_config(folder, connection), revision)


def _config(folder: Path, connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(folder.resolve()).replace("%", "%%"))
    return config
