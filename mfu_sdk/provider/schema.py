"""The schema: the migrations as statements, how long rows are kept, and the same as DDL for a ClickHouse of one's own.

The embedded store and a cluster have one SQL text. On a cluster only four things differ, and they are put in here: each
table is named `…_local`, with `ON CLUSTER` and a replicated engine, a Distributed table of the plain name stands before
it, so that every query reads all shards, and rows are kept for as long as is asked. Materialized views sit on the local
tables and write to local ones.
"""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import resources
from typing import Final

from mfu_sdk.errors import ConfigurationError

SQL: Final = resources.files("mfu_sdk.provider") / "sql"
MIGRATION: Final = re.compile(r"(\d{4})_\w+\.sql")

_AGE: Final = re.compile(r"(\d{1,5})([dy])")
_CLUSTER: Final = re.compile(r"[A-Za-z0-9_.{}-]{1,100}")
_CREATED: Final = re.compile(r"CREATE (TABLE|MATERIALIZED VIEW|VIEW) IF NOT EXISTS otel\.(\w+)")
_DROPPED: Final = re.compile(r"DROP (?:TABLE|VIEW) IF EXISTS otel\.(\w+)")
_ENGINE: Final = re.compile(r"ENGINE = (\w*MergeTree)(?:\(([^)]*)\))?")
_TIMES: Final = {
    "otel_traces": "Timestamp",
    "otel_metrics_gauge": "TimeUnix",
    "otel_metrics_sum": "TimeUnix",
    "otel_metrics_histogram": "TimeUnix",
    "otel_logs": "Timestamp",
    "mfu_sums_5m": "ts",
    "mfu_sums_1h": "ts",
    "mfu_counting_1h": "ts",
    "mfu_gpus_5m": "ts",
    "mfu_gpus_1h": "ts",
    "mfu_gpu_errors_5m": "ts",
}
"""Each table that is kept for a time, and the column that tells its age."""

VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS otel.mfu_migrations (version UInt32, name String, applied DateTime('UTC'))"
    " ENGINE = MergeTree ORDER BY version"
)
"""Where a store keeps which migrations it has seen."""

_SPAN_SUMS: Final = "mfu_span_sums"
"""The view by which a day is summed again: on a cluster each shard sums its own spans, so there it has a local twin."""

_FILLS: Final = (
    (("mfu_sums_1h", "mfu_sums_5m"), "five_minutes"),
    (("mfu_counting_1h",), "counting"),
    ((), "gpu_hours"),
)


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days spans, metric points and log records, five-minute sums and hourly sums are kept."""

    raw_days: int = 14
    five_minutes_days: int = 90
    hours_days: int = 3 * 365

    def __post_init__(self) -> None:
        if not 1 <= self.raw_days <= self.five_minutes_days <= self.hours_days:
            raise ConfigurationError(
                f"retention {self}: each must be kept for a day at least and no shorter than what it is summed from;"
                " give spans, five minutes and hours such as 14d,90d,3y"
            )

    def __str__(self) -> str:
        return f"{self.raw_days}d,{self.five_minutes_days}d,{self.hours_days}d"

    def days(self, table: str) -> int:
        """For how long `table` is kept."""
        if table.endswith("_1h"):
            return self.hours_days
        return self.five_minutes_days if table.endswith("_5m") else self.raw_days


def parse_retention(text: str) -> Retention:
    """Three ages in days or years, of spans, five-minute sums and hourly sums: 14d,90d,3y."""
    found = [_AGE.fullmatch(age.strip()) for age in text.split(",")]
    ages = [int(age[1]) * (365 if age[2] == "y" else 1) for age in found if age is not None]
    if len(found) != 3 or len(ages) != 3:
        raise ConfigurationError(
            f"retention {text[:40]!r}: must be three ages in days or years (spans, five minutes, hours): 14d,90d,3y"
        )
    return Retention(*ages)


def migrations() -> list[str]:
    """The names of the migrations, in order."""
    return sorted(entry.name for entry in SQL.iterdir() if MIGRATION.fullmatch(entry.name))


def newest() -> int:
    """The number of the last migration, which is the version of the schema."""
    return int(migrations()[-1][:4])


def statements(name: str) -> list[str]:
    """The statements of one migration."""
    return [part.strip() for part in re.split(r";[ \t]*\n", (SQL / name).read_text("utf-8")) if part.strip()]


def tables() -> set[str]:
    """The names of all tables and views."""
    return {made[2] for statement in _standing() if (made := _CREATED.search(statement)) is not None}


def fill(name: str) -> str:
    """A statement of sql/fill: which days differ, and what sums the days from `first` to `last` again."""
    return (SQL / "fill" / f"{name}.sql").read_text("utf-8")


def time_to_live(retention: Retention) -> dict[str, str]:
    """Each table's TTL expression."""
    return {table: f"toDateTime({time}) + toIntervalDay({retention.days(table)})" for table, time in _TIMES.items()}


def ddl(cluster: str | None = None, retention: Retention | None = None) -> str:
    """The schema as it is now, in statements that may be run again; on `cluster` where one is named.

    Raises `ConfigurationError` for a name that is no cluster's.
    """
    where = _on(cluster)
    tables: list[str] = []
    made: list[str] = []
    for statement in _standing():
        created = _CREATED.search(statement)
        if created is None:
            made.append(_placed(statement, where))
            continue
        kind, name = created[1], created[2]
        if kind == "TABLE":
            tables.append(name)
            made.append(_placed(statement, where))
        elif kind == "MATERIALIZED VIEW":
            made.append(_placed(statement, where))
        else:
            # A view reads whatever its names stand for: Distributed tables on a cluster.
            view = statement.replace(f"CREATE VIEW IF NOT EXISTS otel.{name}", "", 1)
            made.append(f"CREATE OR REPLACE VIEW otel.{name}{where}{view}")
            if where and name == _SPAN_SUMS:
                made.append(f"CREATE OR REPLACE VIEW otel.{name}_local{where}{_local(view)}")
    # The columns of a Distributed table are taken once all of the local one's are there, and views read them.
    first_view = next(i for i, text in enumerate(made) if "CREATE OR REPLACE VIEW" in text)
    if where:
        made[first_view:first_view] = [
            f"CREATE OR REPLACE TABLE otel.{table}{where} AS otel.{table}_local\n"
            f"ENGINE = Distributed('{cluster}', 'otel', '{table}_local', cityHash64({_shard(table)}))"
            for table in tables
            if table in _TIMES
        ]
    if retention is not None:
        made += [
            _placed(f"ALTER TABLE otel.{table} MODIFY TTL {expression}", where)
            for table, expression in time_to_live(retention).items()
        ]
    if not where:
        # `mfu serve --clickhouse` has nothing to migrate then; a cluster's tables it never makes.
        made += [
            VERSIONS,
            "INSERT INTO otel.mfu_migrations SELECT {n}, 'mfu provider ddl', now()"
            " WHERE (SELECT max(version) FROM otel.mfu_migrations) < {n}".replace("{n}", str(newest())),
        ]
    return ";\n\n".join(["CREATE DATABASE IF NOT EXISTS otel" + where, *made]) + ";\n"


def refill(first: date, last: date, cluster: str | None = None) -> str:
    """Statements that sum the days from `first` to `last` again from their spans, on each shard for itself.

    What came in before the materialized views were made is in no sum until then. Raises `ConfigurationError` where
    `first` is after `last`.
    """
    if first > last:
        raise ConfigurationError(f"first {first} is after last {last}; give the earlier day first")
    where = _on(cluster)
    made = []
    for tables, name in _FILLS:
        for table in tables:
            made += [
                _placed(f"ALTER TABLE otel.{table} DROP PARTITION '{first + timedelta(days=n)}'", where)
                for n in range((last - first).days + 1)
            ]
        text = fill(name).replace("{first:Date}", f"'{first}'").replace("{last:Date}", f"'{last}'").strip()
        made.append(_local(text) if where else text)
    return ";\n\n".join(made) + ";\n"


def _standing() -> list[str]:
    """The statements whose work stands at the end: nothing that a later one drops, and no moving of rows."""
    every = [statement for name in migrations() for statement in statements(name)]
    last: dict[str, int] = {}
    for index, statement in enumerate(every):
        if (made := _CREATED.search(statement)) is not None:
            last[made[2]] = index
        elif (gone := _DROPPED.search(statement)) is not None:
            last.pop(gone[1], None)
    kept: list[str] = []
    views: list[str] = []
    for index, statement in enumerate(every):
        bare = re.sub(r"--[^\n]*\n", "", statement).strip()
        created = _CREATED.search(bare)
        if created is not None:
            if last.get(created[2]) == index:
                (views if created[1] == "VIEW" else kept).append(bare)
        elif bare.startswith("ALTER TABLE"):
            kept.append(bare)
    return kept + views


def _on(cluster: str | None) -> str:
    if cluster is None:
        return ""
    if not _CLUSTER.fullmatch(cluster):
        raise ConfigurationError(
            f"cluster {cluster[:40]!r}: must be letters, digits and _.-{{}}, as in system.clusters"
        )
    return f" ON CLUSTER '{cluster}'"


def _placed(statement: str, where: str) -> str:
    """A statement about local tables, on the cluster where there is one."""
    if not where:
        return statement
    placed = _local(statement)
    # The first name is what is made or altered.
    placed = re.sub(r"(otel\.\w+)", rf"\1{where}", placed, count=1)
    return _ENGINE.sub(_replicated, placed)


def _replicated(engine: re.Match[str]) -> str:
    own = f", {engine[2]}" if engine[2] else ""
    return f"ENGINE = Replicated{engine[1]}('/clickhouse/tables/{{shard}}/{{database}}/{{table}}', '{{replica}}'{own})"


def _local(statement: str) -> str:
    tables = "|".join(_TIMES)
    return re.sub(rf"otel\.({tables}|{_SPAN_SUMS})\b", r"otel.\1_local", statement)


def _shard(table: str) -> str:
    # All that one exporter says of a GPU lies on one shard, where its figures meet in one row.
    return (
        "TraceId"
        if table in ("otel_traces", "otel_logs")
        else "Attributes"
        if table.startswith("otel_metrics")
        else "gpu"
        if table.startswith("mfu_gpu")
        else "workload"
    )
