"""The store's tables in their newest form, and the revision of that form. ``migrations/`` leads older stores to it."""

from sqlalchemy import JSON, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

HEAD = "0002"  # the newest revision in migrations/versions; each change of the tables below needs a new one there
BASELINE = "0001"  # the tables of a store without Alembic's table

METADATA = MetaData()

# The prefix keeps a shared PostgreSQL database free of name conflicts.
REVISIONS = Table("plumbline_alembic", METADATA, Column("version_num", String(32), primary_key=True))  # Alembic's own

# Releases without Alembic read only this table: a number above 1 makes them refuse the store instead of writing to it.
VERSIONS = Table("plumbline_schema", METADATA, Column("version", Integer, nullable=False))
NOT_FOR_OLD_RELEASES = 2

RUNS = Table(
    "plumbline_runs",
    METADATA,
    Column("run", Text, primary_key=True),
    Column("command", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started", Text, nullable=False),  # times are UTC in ISO 8601, which sorts as text in both databases
    Column("finished", Text),
    Column("environment", JSON, nullable=False),
)

KEY = ("run", "case", "measure", "quantity")  # names one record

RECORDS = Table(
    "plumbline_records",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", Text, ForeignKey("plumbline_runs.run"), nullable=False, index=True),
    *(Column(name, Text, nullable=False) for name in ("case", "topic", "variant", "engine", "topology", "workload")),
    *(Column(name, Text, nullable=False) for name in ("dtype", "device", "measure", "quantity")),
    Column("value", Double),
    Column("unit", Text, nullable=False),
    Column("law", Double),
    Column("bound", Double),
    *(Column(name, Text, nullable=False) for name in ("verdict", "reason", "direction")),
    Column("detail", JSON, nullable=False),
    Column("recorded", Text, nullable=False),
    Index("plumbline_series", "case", "measure", "quantity"),
    Index("plumbline_key", *KEY, unique=True),
)
COLUMNS = tuple(column.name for column in RECORDS.columns if column.name != "id")
