"""The schema as DDL, how long rows are kept, and one SQL text on one node and on two shards."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from mfu_sdk.cli import main
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider import schema
from mfu_sdk.provider.schema import Retention, parse_retention
from mfu_sdk.provider.store import PointRow, Reading, Row, SpanRow, Store

Make = Callable[..., SpanRow]
T0 = 1_780_000_200 * 10**9
HOUR = 3600 * 10**9
TABLES = (
    "otel_traces",
    "otel_metrics_gauge",
    "otel_metrics_sum",
    "otel_metrics_histogram",
    "otel_logs",
    "mfu_sums_5m",
    "mfu_sums_1h",
    "mfu_counting_1h",
    "mfu_gpus_5m",
    "mfu_gpus_1h",
    "mfu_gpu_errors_5m",
)
COLUMNS = (
    "SELECT table, name, type, default_kind, default_expression FROM system.columns WHERE database = 'otel'"
    " AND table != 'mfu_migrations' ORDER BY table, position"
)


def run(body: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(body), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ddl_is_the_stores_schema(store: Store, tmp_path: Path) -> None:
    """What is printed makes the store's own tables and views, to the column, and may be run again."""
    printed = run(
        """
        import sys
        from chdb.session import Session
        from mfu_sdk.provider import schema
        session = Session(sys.argv[1])
        for statement in schema.ddl(retention=schema.Retention()).split(";\\n\\n") * 2:
            session.query(statement.rstrip().rstrip(";"))
        print(session.query(sys.argv[2], "JSONEachRow"))
        """,
        tmp_path / "ddl",
        COLUMNS,
    )
    made = [json.loads(text) for text in printed.splitlines() if text]
    assert made == store.query(COLUMNS)
    assert {row["table"] for row in made} >= set(TABLES)


def test_ddl_on_a_cluster(store: Store) -> None:
    """Each statement parses; tables are local and replicated, and Distributed ones stand before them."""
    every = schema.ddl("fleet", Retention()).rstrip().rstrip(";").split(";\n\n")
    for statement in every:
        assert store.query("SELECT formatQuery({made:String}) AS text", made=statement)[0]["text"]
        assert "ON CLUSTER 'fleet'" in statement
        assert re.search(
            r"ENGINE = (Replicated\w*MergeTree\('|Distributed\('fleet'|Null)|VIEW|ALTER|DATABASE", statement
        )
    text = "\n".join(every)
    for table in TABLES:
        assert f"CREATE TABLE IF NOT EXISTS otel.{table}_local ON CLUSTER" in text
        assert f"CREATE OR REPLACE TABLE otel.{table} ON CLUSTER 'fleet' AS otel.{table}_local" in text
        assert f"ALTER TABLE otel.{table}_local ON CLUSTER 'fleet' MODIFY TTL" in text
    for view in ("mfu_sums_5m_mv", "mfu_sums_1h_mv", "mfu_counting_1h_mv"):
        [feeding] = [statement for statement in every if f"otel.{view} " in statement]
        assert re.search(rf"TO otel\.{view.removesuffix('_mv')}_local AS", feeding)
        assert re.findall(r"FROM otel\.(\w+)", feeding)[0].endswith("_local")
    assert "rollup_5m" not in text
    # An engine's own argument comes after where its replicas meet.
    assert re.search(r"ReplicatedReplacingMergeTree\('[^']*', '\{replica\}', \w+\)", text)
    assert "TRUNCATE" not in text


@pytest.mark.parametrize("name", ["fleet'; DROP TABLE x", "", "a b"])
def test_no_cluster(name: str) -> None:
    """A name that is no cluster's is refused, and never printed into a statement."""
    with pytest.raises(ConfigurationError, match=r"must be letters, digits"):
        schema.ddl(name)


def test_ages() -> None:
    """Three ages, in days or years of 365."""
    assert parse_retention("14d, 90d,3y") == Retention() == Retention(14, 90, 1095)
    assert str(Retention()) == "14d,90d,1095d"


@pytest.mark.parametrize("text", ["14d,90d", "14,90,1000", "", "1d,2d,3d,4d", "-1d,2d,3d"])
def test_no_ages(text: str) -> None:
    """What is no three ages is refused with its value and an example."""
    with pytest.raises(ConfigurationError, match=r"must be three ages in days or years.*14d,90d,3y"):
        parse_retention(text)


@pytest.mark.parametrize("text", ["90d,14d,3y", "0d,1d,2d", "1d,3d,2d"])
def test_sums_outlive_spans(text: str) -> None:
    """Sums that are dropped before what they are summed from would be summed again for nothing."""
    with pytest.raises(ConfigurationError, match="no shorter than what it is summed from"):
        parse_retention(text)


def test_sums_stay_when_spans_go(data_dir: Path) -> None:
    """Spans of three days ago are dropped after a day, their sums stay, and do so when the store is opened again."""
    printed = run(
        """
        import sys, time
        from mfu_sdk.provider.schema import Retention
        from mfu_sdk.provider.serve import Server
        from mfu_sdk.provider.store import SpanRow, Store
        now = time.time_ns()
        def row(number, days):
            return SpanRow(now - days * 86_400 * 10**9, 10**9, f"{number:032x}", f"{number:016x}", "", "", "mfu.window",
                "Internal", "gpt", {"mfu.tenant.id": "acme", "mfu.run.id": "r"}, "", "",
                {"mfu.model.flop": "1.0", "mfu.available.flop": "4.0"}, "Unset", "")
        def counts(store):
            names = ("otel_traces", "mfu_sums_5m", "mfu_sums_1h", "mfu_counting_1h")
            return [store.query(f"SELECT count() AS n FROM otel.{name}")[0]["n"] for name in names]
        with Store(sys.argv[1]) as store:
            store.insert_spans("acme", [row(1, 0), row(2, 3)])
            print(counts(store))
        loopback = ("127.0.0.1", 0)
        Server(sys.argv[1], http=loopback, web=loopback, retention=Retention(1, 30, 60)).close()
        with Store(sys.argv[1]) as store:
            store._writer.query("OPTIMIZE TABLE otel.otel_traces FINAL")
            print(counts(store))
        with Store(sys.argv[1]) as store:
            print(counts(store))
            store.retain(Retention(1, 2, 60))
            store._writer.query("OPTIMIZE TABLE otel.mfu_sums_5m FINAL")
            print(counts(store))
            made = "SELECT count() AS n FROM system.mutations WHERE database = 'otel'"
            before = store.query(made)
            store.retain(Retention(1, 2, 60))
            print(store.query(made) == before)
        """,
        data_dir,
    )
    assert printed.splitlines() == ["[2, 2, 2, 2]", "[1, 2, 2, 2]", "[1, 2, 2, 2]", "[1, 1, 2, 2]", "True"]


# --- two shards ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(store: Store) -> Callable[[str], None]:
    """Makes two databases with the schema, and a third whose tables read both; splits otel's spans over them."""

    def run_all(text: str, database: str) -> None:
        for statement in text.rstrip().rstrip(";").split(";\n\n"):
            store._writer.query(re.sub(r"\botel\b(?=\.|$)", database, statement))

    whole = schema.ddl()
    for shard in ("s0", "s1"):
        run_all(whole, shard)
    store._writer.query("CREATE DATABASE IF NOT EXISTS both")
    for table in TABLES:
        store._writer.query(f"CREATE TABLE both.{table} AS s0.{table} ENGINE = Merge(REGEXP('^s[01]$'), '^{table}$')")
    run_all(whole[whole.index("CREATE OR REPLACE VIEW") :], "both")

    def split(tenant: str) -> None:
        for shard in (0, 1):
            store._writer.query(
                f"INSERT INTO s{shard}.otel_traces SELECT * FROM otel.otel_traces"
                f" WHERE mfu_tenant_id = '{tenant}' AND cityHash64(TraceId) % 2 = {shard}"
            )
            store._writer.query(
                f"INSERT INTO s{shard}.otel_metrics_gauge SELECT * FROM otel.otel_metrics_gauge"
                f" WHERE ResourceAttributes['mfu.tenant.id'] = 'provider:{tenant}'"
                f" AND cityHash64(Attributes) % 2 = {shard}"
            )
            hours = schema.fill("gpu_hours").replace("otel.", f"s{shard}.")
            store._writer.query(hours, {"first": "2026-05-28", "last": "2026-05-28"})

    return split


def in_order(rows: list[Row]) -> list[str]:
    """Rows and their arrays in an order of their own: no query says in which order a group's names come."""
    told = [{k: sorted(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return sorted(json.dumps(row, sort_keys=True) for row in told)


def test_two_shards_answer_as_one(
    store: Store,
    sharded: Callable[[str], None],
    tenant: str,
    spans_of_a_fleet: list[SpanRow],
    points_of_a_fleet: Callable[[str], tuple[PointRow, ...]],
) -> None:
    """Every query of sql/read, unchanged, finds on two shards what it finds on one node."""
    store.insert_spans(tenant, spans_of_a_fleet)
    store.insert_points(points_of_a_fleet(f"provider:{tenant}"))
    # Of the one day there are hours, of the next only five minutes.
    store._writer.query(schema.fill("gpu_hours"), {"first": "2026-05-28", "last": "2026-05-28"})
    sharded(tenant)
    halves = [store.query(f"SELECT count() AS n FROM s{shard}.otel_traces")[0]["n"] for shard in (0, 1)]
    assert min(halves) > 40
    scope = {"since": T0 + 7, "until": T0 + 5 * HOUR - 7, "everyone": 0, "tenant": tenant}
    # What is kept of findings lies with the daemon that made them.
    for name in sorted({*get_args(Reading)} - {"findings", "finding_states", "judged_days"}):
        text = (schema.SQL / "read" / f"{name}.sql").read_text("utf-8")
        asked: dict[str, Any] = {**scope, "bucket_s": 3600, "fine_s": 3600, "fingerprint": "00000000000000ff"}
        asked |= {"run_id": "run-0", "host": "node-1", "keys": ["GPU-0"], "shares": ["1"], "runs": 8, "steps": 2600}
        asked |= {"since_ns": [str(scope["since"])], "until_ns": [str(scope["until"])]}
        asked |= {"tenants": [tenant], "hosts": ["node-1"], "since_s": [str(T0 // 10**9)]}
        asked |= {"until_s": [str(T0 // 10**9 + 1800)]}
        asked = {key: value for key, value in asked.items() if f"{{{key}:" in text}
        one = store.query(text, **asked)
        two = store.query(text.replace("otel.", "both."), **asked)
        # No hour of this fleet is known to its last step, which a witness asks for, and there is one tenant.
        assert one or name in ("witnessed", "claimed_twice"), name
        assert in_order(one) == in_order(two), name


def test_days_are_summed_again(store: Store, sharded: Callable[[str], None], tenant: str, window: Make) -> None:
    """What came in before the materialized views is in the sums once the printed statements have run, and once only."""
    store.insert_spans(tenant, [window(at_s) for at_s in (0.0, 30.0, 4000.0, 20_000.0)])
    sharded(tenant)
    tables = ("mfu_sums_5m", "mfu_sums_1h", "mfu_counting_1h")

    def spans() -> list[Any]:
        return [store.query(f"SELECT sum(spans) AS n FROM s0.{table}")[0]["n"] for table in tables]

    before = spans()
    assert before[0] > 0
    for table in tables:
        store._writer.query(f"TRUNCATE TABLE s0.{table}")
    for _ in range(2):
        for statement in schema.refill(date(2026, 5, 28), date(2026, 5, 29)).rstrip().rstrip(";").split(";\n\n"):
            store._writer.query(statement.replace("otel.", "s0."))
        assert spans() == before


def test_commands_print_it() -> None:
    """`mfu provider ddl` and `refill` print what the module makes; bad ages are one line and exit code 2."""
    asked = {
        ("ddl",): schema.ddl(),
        ("ddl", "--cluster", "fleet", "--ttl", "1d,2d,3d"): schema.ddl("fleet", Retention(1, 2, 3)),
        ("refill", "2026-05-28", "2026-05-29"): schema.refill(date(2026, 5, 28), date(2026, 5, 29)),
    }
    for arguments, text in asked.items():
        done = CliRunner().invoke(main, ["provider", *arguments])
        assert (done.exit_code, done.output) == (0, text)
    refused = CliRunner().invoke(main, ["provider", "ddl", "--ttl", "soon"])
    assert refused.exit_code == 2
    assert refused.output.startswith("mfu: retention 'soon': must be three ages")


def test_refill_of_no_days() -> None:
    """Days in the wrong order are refused."""
    with pytest.raises(ConfigurationError, match="is after last"):
        schema.refill(date(2026, 5, 29), date(2026, 5, 28))


def test_refill_on_a_shard(store: Store) -> None:
    """On a cluster partitions are dropped everywhere, and each shard sums its own spans into its own tables."""
    text = schema.refill(date(2026, 5, 28), date(2026, 5, 28), "fleet")
    for statement in text.rstrip().rstrip(";").split(";\n\n"):
        assert store.query("SELECT formatQuery({made:String}) AS text", made=statement)[0]["text"]
    assert re.findall(r"FROM otel\.(\w+)", text) == ["mfu_span_sums_local", "otel_traces_local", "mfu_gpus_5m_local"]
    assert re.findall(r"INTO otel\.(\w+)", text) == ["mfu_sums_5m_local", "mfu_counting_1h_local", "mfu_gpus_1h_local"]
