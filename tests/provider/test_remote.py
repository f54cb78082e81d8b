"""A ClickHouse server as the store, over real HTTP: the same answers as in process, each row once, and plain refusals.

The server is `clickhouse_front.py`: the engine itself behind the documented HTTP interface, in a process of its own.
A real server was not to be had.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mfu_sdk import semconv
from mfu_sdk.cli import main
from mfu_sdk.errors import ConfigurationError, StoreAwayError, StoreError
from mfu_sdk.provider import report, schema
from mfu_sdk.provider.remote import Address, parse_address
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import PointRow, Reading, Row, SpanRow, Store

pytestmark = pytest.mark.slow
Make = Callable[..., SpanRow]
T0 = 1_780_000_200 * 10**9
HOUR = 3600 * 10**9
FRONT = Path(__file__).parent / "clickhouse_front.py"
PASSWORD = "p@ss:word/ü"
ACCESS = {"CLICKHOUSE_USER": "mfu", "CLICKHOUSE_PASSWORD": PASSWORD}
SCOPE: dict[str, Any] = {"since": T0 + 7, "until": T0 + 5 * HOUR - 7, "everyone": 0}


class Door:
    """A front on loopback over a directory; `kill` takes it away, `open` brings it back at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self.open()

    def open(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FRONT), str(self._folder), str(self._port)],
            env={**os.environ, "FRONT_USER": "mfu", "FRONT_PASSWORD": PASSWORD},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(120)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def address(self) -> Address:
        return parse_address(self.url, ACCESS)

    def tell(self, **faults: int) -> list[str]:
        """Set faults; the inserts that came so far."""
        asked = "&".join(f"{name}={n}" for name, n in faults.items())
        with urllib.request.urlopen(f"{self.url}/_test?{asked}", timeout=120) as answer:
            told: list[str] = json.loads(answer.read())
            return told


@contextmanager
def fronted(folder: Path) -> Iterator[Door]:
    door = Door(folder)
    try:
        yield door
    finally:
        door.kill()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A front that this module shares."""
    with fronted(tmp_path_factory.mktemp("server") / "clickhouse") as opened:
        yield opened


@pytest.fixture(scope="module")
def remote(door: Door) -> Iterator[Store]:
    """The store that two daemons made at once."""
    found: list[Store | StoreError] = []

    def start() -> None:
        try:
            found.append(Store(door.address))
        except StoreError as error:
            found.append(error)

    daemons = [threading.Thread(target=start) for _ in range(2)]
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        daemon.join(120)
    first, second = found
    assert isinstance(first, Store), first
    assert isinstance(second, Store), second
    second.close()
    with first:
        yield first


def test_two_daemons_migrate_once(remote: Store) -> None:
    """Of two daemons that start on an empty server each migration is made once, and the lock is gone."""
    versions = remote.query("SELECT version, count() AS n FROM otel.mfu_migrations GROUP BY version ORDER BY version")
    assert versions == [{"version": int(name[:4]), "n": 1} for name in schema.migrations()]
    assert remote.query("SELECT name FROM system.tables WHERE name = 'mfu_lock'") == []


def test_lock_of_the_dead(door: Door, remote: Store) -> None:
    """A lock that a process of this machine left behind when it was killed holds nobody up."""
    dead = f"{socket.gethostname()} {2**22 + 1}"
    remote._writer.query(f"CREATE TABLE otel.mfu_lock (x UInt8) ENGINE = Memory COMMENT '{dead}'")
    Store(door.address).close()
    assert remote.query("SELECT name FROM system.tables WHERE name = 'mfu_lock'") == []


# --- the same answers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(store: Store, remote: Store) -> Callable[..., str]:
    """Puts the same spans and points into both, once for the module, and says of which tenant they are."""
    done: list[str] = []

    def fill(tenant: str, spans: list[SpanRow], points: Callable[[str], tuple[PointRow, ...]]) -> str:
        if not done:
            done.append(tenant)
            for each in (store, remote):
                assert each.insert_spans(tenant, spans) == len(spans)
                each.insert_points(points(f"provider:{tenant}"))
        return done[0]

    return fill


def in_order(rows: list[Row]) -> list[str]:
    """Rows and their arrays in an order of their own: no query says in which order a group's names come."""
    told = [{k: sorted(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return sorted(json.dumps(row, sort_keys=True) for row in told)


@pytest.fixture
def both(
    store: Store,
    remote: Store,
    filled: Callable[..., str],
    tenant: str,
    spans_of_a_fleet: list[SpanRow],
    points_of_a_fleet: Callable[[str], tuple[PointRow, ...]],
) -> tuple[Store, Store, str]:
    """The store in process, the one over HTTP, and the tenant whose telemetry is in both."""
    return store, remote, filled(tenant, spans_of_a_fleet, points_of_a_fleet)


@pytest.mark.parametrize("reading", sorted(get_args(Reading)))
def test_readings_are_equal(both: tuple[Store, Store, str], reading: Reading) -> None:
    """Every query of sql/read finds over HTTP what it finds in process."""
    text = (schema.SQL / "read" / f"{reading}.sql").read_text("utf-8")
    asked = {
        **SCOPE,
        "tenant": both[2],
        "bucket_s": 3600,
        "fine_s": 3600,
        "fingerprint": "00000000000000ff",
        "run_id": "run-0",
        "host": "node-1",
    }
    asked |= {"keys": ["GPU-0"], "shares": ["1"], "since_ns": [str(SCOPE["since"])], "until_ns": [str(SCOPE["until"])]}
    asked |= {"first": "2026-05-28", "last": "2026-05-29"}
    asked |= {"runs": 32, "steps": 4096, "tenants": [both[2]], "hosts": ["node-1"], "since_s": ["0"], "until_s": ["1"]}
    asked = {key: value for key, value in asked.items() if f"{{{key}:" in text}
    one, two = (each.read(reading, **asked) for each in both[:2])
    assert in_order(one) == in_order(two)
    assert one or reading in ("witnessed", "claimed_twice", "findings", "finding_states", "judged_days")


def test_reports_and_pages_are_equal(both: tuple[Store, Store, str], page_of: Callable[[Report], str]) -> None:
    """The report, its six questions, and the page are the same."""
    one, two = (report.build(each, Range(T0, T0 + 5 * HOUR), None) for each in both[:2])
    assert one.fleet.model_flop
    assert report.to_json(one) == report.to_json(two)
    assert page_of(one) == page_of(two)


def test_parameters_are_values(remote: Store) -> None:
    """Whatever a parameter holds is a value: it ends no string, no address and no statement, however long."""
    hostile = "'; DROP TABLE otel.otel_traces; -- \\ \n\t\0&param_n=1#%00 ü"
    many = [hostile, "", *(f"it's {number} \\" for number in range(20_000))]
    [row] = remote.query(
        "SELECT {text:String} AS text, {many:Array(String)} AS many, {none:Nullable(String)} AS none, {n:Int64} AS n",
        text=hostile,
        many=many,
        none=None,
        n=-(2**62),
    )
    assert row == {"text": hostile, "many": many, "none": None, "n": -(2**62)}


# --- once -------------------------------------------------------------------------------------------------------------


def counted(store: Store, tenant: str) -> list[int]:
    names = ("mfu_sums_5m", "mfu_sums_1h", "mfu_counting_1h")
    sums = [
        store.query(f"SELECT sum(t.spans) AS n FROM otel.{name} AS t WHERE tenant = {{tenant:String}}", tenant=tenant)
        for name in names
    ]
    spans = store.query(
        "SELECT count() AS n FROM otel.otel_traces WHERE mfu_tenant_id = {tenant:String}", tenant=tenant
    )
    return [rows[0]["n"] for rows in (spans, *sums)]


@pytest.mark.parametrize("fault", ["lose", "refuse"])
def test_lost_answers(
    door: Door,
    remote: Store,
    tenant: str,
    window: Make,
    points_of_a_fleet: Callable[[str], tuple[PointRow, ...]],
    fault: str,
) -> None:
    """An insert whose answer is lost, twice, is sent again and counted once, in rows and in what is summed of them."""
    before = len(door.tell(**{fault: 2}))
    assert remote.insert_spans(tenant, [window(0), window(30)]) == 2
    assert len(door.tell()) - before == (3 if fault == "lose" else 1)
    assert counted(remote, tenant) == [2, 2, 2, 2]
    points = points_of_a_fleet(f"provider:{tenant}")
    summed = "SELECT sum(tensor_n) AS n FROM otel.mfu_gpus_5m"
    [first] = remote.query(summed)
    door.tell(**{fault: 2})
    remote.insert_points(points)
    told = sum(point.columns["MetricName"] == "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE" for point in points)
    assert told > 100
    assert remote.query(summed) == [{"n": first["n"] + told}]


def test_no_answer_is_no_acknowledgement(door: Door, remote: Store, tenant: str, window: Make) -> None:
    """Where no answer comes at all the store says that it does not know; the sender's retry finds what was done."""
    spans = [window(0), window(30)]
    door.tell(lose=3)
    with pytest.raises(StoreAwayError, match=r"^http://127.0.0.1:\d+ does not answer \(.+\); is ClickHouse running"):
        remote.insert_spans(tenant, spans)
    assert remote.insert_spans(tenant, [*spans, window(60)]) == 1
    assert counted(remote, tenant) == [3, 3, 3, 3]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_wrong_password(door: Door, remote: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A password that is wrong is one line that says what to do, and holds no password; so does nothing else."""
    address = parse_address(door.url.replace("http://", "http://mfu:gues%73@"), {})
    assert (address.user, address.password) == ("mfu", "guess")
    with pytest.raises(StoreError, match=r"code 516: .*; check the user, the password and its rights") as caught:
        Store(address)
    assert not re.search("guess|\n", f"{caught.value}")
    assert "guess" not in repr(address) + str(address) + caplog.text


def test_nobody_there() -> None:
    """Where nobody listens that is one line too."""
    with pytest.raises(StoreAwayError, match=r"^http://127.0.0.1:9 does not answer \(.*refused.*\); is ClickHouse"):
        Store(parse_address("http://127.0.0.1:9", {}))


def test_bad_query_is_one_line(remote: Store) -> None:
    """An error of the server becomes one line of ours."""
    with pytest.raises(StoreError, match=r"^http://.* refused a query \(code 60: .*nowhere.*\); see") as caught:
        remote.query("SELECT * FROM otel.nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://h", "http://", "h:8123", "http://u:p@h/db", "http://h?user=u", "http://h:port"])
def test_no_address(url: str) -> None:
    """What is no address is refused, and not repeated: a slip may hold a password."""
    with pytest.raises(ConfigurationError, match=r"^--clickhouse: must be http\[s\]://") as caught:
        parse_address(url, {})
    assert url not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://db", {}, Address("http://db:8123", "default", "")),
        ("https://db/", ACCESS, Address("https://db:8443", "mfu", PASSWORD)),
        ("https://a%40b:p%2Fw@[::1]:9", ACCESS, Address("https://[::1]:9", "a@b", "p/w")),
        ("http://db:1", {"CLICKHOUSE_USER": "u"}, Address("http://db:1", "u", "")),
    ],
    ids=["plain", "environment", "url", "user"],
)
def test_addresses(url: str, environment: dict[str, str], expected: Address) -> None:
    """Ports are ClickHouse's own; what the URL says goes before what the environment says."""
    assert parse_address(url, environment) == expected


@pytest.mark.parametrize("places", [[], ["--data", "store", "--clickhouse", "http://h"]], ids=["none", "both"])
def test_one_place(places: list[str]) -> None:
    """A daemon has one store: a folder or a server."""
    done = CliRunner().invoke(main, ["serve", *places])
    assert (done.exit_code, done.output) == (
        2,
        "mfu: mfu serve: needs either --data DIR or --clickhouse URL, and not both\n",
    )


def test_report_changes_nothing(door: Door, remote: Store) -> None:
    """`mfu report --clickhouse` reads, and neither migrates a server nor reads one of another version."""
    asked = ["report", "--clickhouse", door.url, "--since", "2026-05-28T00:00:00Z", "--format", "json"]
    done = CliRunner().invoke(main, [*asked, "--until", "2026-05-30T00:00:00Z"], env=ACCESS)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["window"]
    newest = schema.newest()
    remote._writer.query(f"ALTER TABLE otel.mfu_migrations DELETE WHERE version = {newest} SETTINGS mutations_sync = 1")
    try:
        older = CliRunner().invoke(main, asked, env=ACCESS)
        assert older.exit_code == 2
        assert f"its schema is {newest - 1}, this mfu-sdk reads {newest}; have its `mfu serve` upgraded" in older.output
    finally:
        remote._writer.query(f"INSERT INTO otel.mfu_migrations SELECT {newest}, 'again', now()")


# --- the daemon -------------------------------------------------------------------------------------------------------


def request_of(numbers: range, start_unix_ns: int) -> bytes:
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    for number in numbers:
        window = spans.add(
            name=semconv.SPAN_WINDOW,
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            start_time_unix_nano=start_unix_ns + number,
            end_time_unix_nano=start_unix_ns + 10**9,
        )
        window.attributes.add(key=semconv.MODEL_FLOP).value.double_value = 1.0
    return bytes(made.SerializeToString())


def asked_of(url: str, body: bytes | None = None) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/x-protobuf"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_daemon_outlives_its_server(tmp_path: Path) -> None:
    """Accepted is stored; while the server is away senders are told to keep what they have and readers are told why.

    Afterwards each span is counted once, whatever was sent again. A span that is older than spans are kept is refused:
    nothing would tell a retry of it from news.
    """
    with fronted(tmp_path / "clickhouse") as door:
        daemon = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", "from mfu_sdk.cli import main; main()", "serve",
             "--clickhouse", door.url, "--http", "127.0.0.1:0", "--web", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ACCESS,
        )  # fmt: skip
        try:
            assert daemon.stdout is not None
            otlp, page = re.findall(r"http://[\d.:]+", daemon.stdout.readline())
            now = time.time_ns()
            first, second = request_of(range(1, 51), now - 60 * 10**9), request_of(range(41, 91), now - 60 * 10**9)
            assert asked_of(f"{otlp}/v1/traces", first)[0] == 200
            assert asked_of(f"{otlp}/v1/traces", first)[0] == 200
            late = ExportTraceServiceResponse.FromString(
                asked_of(f"{otlp}/v1/traces", request_of(range(100, 103), now - 15 * 24 * HOUR))[2]
            )
            assert late.partial_success.rejected_spans == 3
            assert "a span that starts more than 14 days ago" in late.partial_success.error_message
            door.kill()
            status, headers, _ = asked_of(f"{otlp}/v1/traces", second)
            assert (status, headers["Retry-After"]) == (503, "5")
            status, headers, body = asked_of(page)
            assert (status, headers["Retry-After"]) == (503, "5")
            assert b"the ClickHouse server that holds the fleet's telemetry does not answer" in body
            door.open()
            assert asked_of(f"{otlp}/v1/traces", second)[0] == 200
            assert asked_of(page)[0] == 200
            with Store(door.address, writes=False) as store:
                assert counted(store, "local") == [90, 90, 90, 90]
            daemon.send_signal(signal.SIGTERM)
            _, errors = daemon.communicate(timeout=120)
        finally:
            daemon.kill()
            daemon.communicate()
    assert daemon.returncode == 0
    assert PASSWORD not in errors
    assert "does not answer" in errors
