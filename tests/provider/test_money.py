"""The money end to end: spans in a store, the example's books, the report that a finance person reads, and its page."""

import contextlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mfu_sdk import semconv
from mfu_sdk.cli import main
from mfu_sdk.provider import report
from mfu_sdk.provider.books import Books, Snapshot
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.serve import Server
from mfu_sdk.provider.store import SpanRow, Store

ROOT = Path(__file__).parents[2]
BOOKS = ROOT / "examples" / "provider" / "books"
PAGE = ROOT / "docs" / "explanation" / "economics.md"
DAY_NS = 86_400 * 10**9
MONDAY = 1_793_577_600 * 10**9
"""2026-11-02T00:00:00Z."""
PEAK = 989_429_760_000_000.0
H100 = "NVIDIA H100 80GB HBM3"


def hour(tenant: str, workload: str, device: str, number: int, mfu: float, peak: float, **more: object) -> SpanRow:
    """A window of an hour's steps on one device."""
    resource = {
        semconv.TENANT_ID: tenant,
        semconv.WORKLOAD_NAME: workload,
        semconv.RUN_ID: f"run-{workload}",
        semconv.RUN_ATTEMPT: "0",
        semconv.HW_NAME: H100,
        semconv.HW_ID: device,
        **{key: str(value) for key, value in more.pop("resource", {}).items()},  # type: ignore[attr-defined]  # a dict
    }
    attributes = {
        semconv.MODEL_FLOP: mfu * peak * 3600,
        semconv.AVAILABLE_FLOP: peak * 3600,
        semconv.STEP_TIME: 3600.0,
        semconv.WINDOW_STEP_COUNT: 100,
        semconv.WINDOW_STEP_TIMED: 100,
        semconv.WINDOW_STEP_UNKNOWN: 0,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    name = f"{device}/{number}".encode()
    return SpanRow(
        start_unix_ns=MONDAY + number * 3600 * 10**9,
        duration_ns=3600 * 10**9,
        trace_id=name.hex().zfill(32)[:32],
        span_id=f"{abs(hash_of(device)):08x}{number:08x}",
        parent_span_id="",
        trace_state="",
        name=semconv.SPAN_WINDOW,
        kind="Internal",
        service=workload,
        resource={key: str(value) for key, value in resource.items()},
        scope_name=semconv.SCOPE,
        scope_version="",
        attributes={key: str(value) for key, value in attributes.items()},
        status_code="Unset",
        status_message="",
    )


def hash_of(text: str) -> int:
    return sum((place + 1) * ord(letter) for place, letter in enumerate(text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the Monday of the example: acme trains for 21 hours on node-1, initech serves from two slices."""
    path = tmp_path_factory.mktemp("money") / "data"
    with Store(path) as store:
        for gpu in range(8):
            where = {semconv.HOST_NAME: "node-1", semconv.ALLOCATION_ID: "slurm-123", semconv.DIST_RANK: gpu}
            where |= {semconv.DIST_WORLD_SIZE: 8, semconv.TOPOLOGY_LINK: "pcie", semconv.TOPOLOGY_LINK_BEST: "nvlink"}
            rows = [
                hour(
                    "acme",
                    "llama-8b",
                    f"GPU-{gpu}",
                    number,
                    0.36,
                    PEAK,
                    resource=where,
                    mfu__phase="train",
                    mfu__expected__flop=0.60 * PEAK * 3600,
                    mfu__expected__available__flop=PEAK * 3600,
                    mfu__step__data_time=360.0,
                    mfu__step__comm_time=540.0,
                    mfu__step__skew_time=180.0,
                    mfu__comm__bus_rate=140e9,
                    mfu__comm__bus_rate__peak=300e9,
                    mfu__token__count=2_000_000,
                )
                for number in range(21)
            ]
            store.insert_spans("acme", rows)
        for slice_ in ("MIG-a", "MIG-b"):
            where = {
                semconv.HOST_NAME: "node-3",
                semconv.HW_PARENT: "GPU-m",
                semconv.MIG_PROFILE: "3g.40gb",
            }
            rows = [
                hour(
                    "initech",
                    "chat",
                    slice_,
                    number,
                    0.10,
                    PEAK * 3 / 7,
                    resource=where,
                    mfu__phase="decode",
                    mfu__expected__flop=0.20 * PEAK * 3 / 7 * 3600,
                    mfu__expected__available__flop=PEAK * 3 / 7 * 3600,
                    mfu__token__count=1_500_000,
                )
                for number in range(24)
            ]
            store.insert_spans("initech", rows)
    return path


def books(*inventory: str, prices: bool = True) -> Snapshot:
    """The example's books, as they stand."""
    return Books([BOOKS / "prices.yaml"] if prices else [], [BOOKS / name for name in inventory]).current()


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, Report]:
    """The Monday as it is seen with all books, with the inventory alone, with none, and of one tenant."""
    monday, both = Range(MONDAY, MONDAY + DAY_NS), ("inventory.yaml", "allocations.csv")
    with Store(folder) as store:
        return {
            "all": report.build(store, monday, None, books(*both)),
            "inventory": report.build(store, monday, None, books(*both, prices=False)),
            "none": report.build(store, monday, None, Snapshot()),
            "tenant": report.build(store, monday, "acme", None),
        }


@pytest.fixture
def found(reports: dict[str, Report]) -> Report:
    return reports["all"]


def test_page_shows_the_report(found: Report) -> None:
    """The explanation prints the report on its own example, as it is."""
    text = report.render_text(found, 100)
    section = text[text.index("Money, in USD") : text.index("\nMFU = Σ")].rstrip()
    assert section in PAGE.read_text("utf-8")


def test_page_on_paper(found: Report) -> None:
    """Every line of arithmetic on the page is right, and gives what the report says."""
    block = PAGE.read_text("utf-8").split("```text\n")[1].split("```")[0]
    results = {}
    for line in block.splitlines():
        parts = re.fullmatch(r"(?P<label>.+?)  +(?P<sum>[0-9 .+×−/()]+) = (?P<result>[−0-9.]+)", line)
        assert parts is not None, line
        value = eval(parts["sum"].replace("×", "*").replace("−", "-"))
        assert f"{value:.2f}".replace("-", "−") == parts["result"], line
        results[parts["label"]] = value
    money = found.economics
    assert money is not None
    stages = {stage.stage: stage.gpu_hours for stage in money.waterfall}
    said = {
        "owned GPU-hours": money.owned_gpu_hours,
        "cost": money.cost,
        "revenue": money.revenue,
        "margin": money.margin,
        "useful PFLOP-hours": money.useful_pflop_hours,
        "a useful PFLOP-hour": money.cost_per_useful_pflop_hour,
        "observed hours alone": money.cost_per_useful_pflop_hour_observed,
        "a million tokens": money.cost_per_million_tokens,
        "efficiency gap": money.efficiency_gap and money.efficiency_gap.mid,
        "down": stages["unavailable"],
        "not sold": stages["unsold"],
        "between MIG slices": stages["mig_stranded"],
        "not observed": stages["unobserved"],
        "held without steps": stages["idle"],
        "useful": stages["useful"],
        "out of reach": stages["unattainable"],
        "kernels and host": stages["kernel_gap"],
    }
    for label, value in said.items():
        # The page rounds its parts to cents and hundredths of an hour.
        assert results[label] == pytest.approx(value, abs=0.03), label


def test_json_is_read_back(found: Report) -> None:
    """A report with money survives its JSON, whose names are the public ones."""
    text = report.to_json(found)
    assert report.from_json(text) == found
    economics = json.loads(text)["economics"]
    assert set(economics) >= {
        "currency",
        "cost_per_useful_pflop_hour",
        "cost_per_useful_pflop_hour_observed",
        "revenue_per_gpu_hour",
        "margin_per_gpu_hour",
        "cost_per_million_tokens",
        "waterfall",
        "incidence",
    }
    assert set(economics["waterfall"][0]) >= {"stage", "gpu_hours", "cost"}
    fleet = json.loads(text)["fleet"]
    product = fleet["factors"]["allocation"] * fleet["factors"]["runtime"] * fleet["factors"]["step"]
    assert product == pytest.approx(fleet["owned_mfu"])


def test_without_books(reports: dict[str, Report]) -> None:
    """Without a book there is no money and a sentence; with an inventory alone there are hours; a tenant sees none."""
    said = {name: " ".join(report.render_text(each).split()) for name, each in reports.items()}
    assert all(reports[name].economics is None for name in ("inventory", "none", "tenant"))
    assert "No money: the price and cost books are not given; name them with --prices FILE" in said["inventory"]
    assert "Owned GPU-hours, from down to useful" in said["inventory"]
    assert "cost, USD" not in said["inventory"]
    assert "Name both, --prices FILE (prices and costs) and --inventory FILE" in said["none"]
    assert "No money: it is reckoned for the whole fleet" in said["tenant"]
    assert reports["tenant"].fleet.owned_mfu is reports["none"].fleet.owned_mfu is None
    assert reports["inventory"].fleet.owned_mfu == reports["all"].fleet.owned_mfu


def test_command(folder: Path) -> None:
    """`mfu report` reckons with the files named, and prints CSV of FOCUS; what does not go together is refused."""
    window = ["--since", "2026-11-02", "--until", "2026-11-03"]

    def ran(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["report", *arguments, *window])
        return result.exit_code, result.output

    held = ["--prices", str(BOOKS / "prices.yaml")]
    held += [each for name in ("inventory.yaml", "allocations.csv") for each in ("--inventory", str(BOOKS / name))]
    code, text = ran("--data", str(folder), *held)
    assert (code, "Money, in USD" in text) == (0, True)
    code, text = ran("--data", str(folder), *held, "--format", "csv")
    assert code == 0
    assert text.startswith("BilledCost,BillingAccountId,")
    # Three allocations, and what is not paid for of node-2 and node-3.
    assert len(text.splitlines()) == 6
    for wrong, message in (
        (["--url", "http://127.0.0.1:9", *held], "--prices, --inventory: go with --data"),
        (["--data", str(folder), "--format", "csv", "--tenant", "acme"], "leave --tenant out"),
        (["--data", str(folder), "--prices", "none.yaml"], "none.yaml: cannot be read"),
    ):
        code, text = ran(*wrong)
        assert (code, message in " ".join(text.split())) == (2, True), text


def test_who_sees_money(folder: Path, tmp_path: Path) -> None:
    """An operator sees the fleet's money, a tenant none of it; without a tokens file whoever loopback lets in does."""
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text("tenants: {acme: [{token: a}]}\noperators: {ops: [{token: o}]}\n")
    held = {"prices": [BOOKS / "prices.yaml"], "inventory": [BOOKS / "inventory.yaml", BOOKS / "allocations.csv"]}
    free = ("127.0.0.1", 0)
    query = "since=2026-11-02&until=2026-11-03"
    server = Server(folder, http=free, web=free, tokens=tokens, **held)  # type: ignore[arg-type]  # named above
    with running(server) as web:
        status, text = get(f"{web}/api/report?{query}", "o")
        assert (status, json.loads(text)["economics"]["owned_gpu_hours"]) == (200, 408.0)
        status, text = get(f"{web}/api/report?{query}", "a")
        assert (status, json.loads(text)["economics"], json.loads(text)["hours"]) == (200, None, [])
        assert "whole fleet" in json.loads(text)["economics_missing"]
        assert get(f"{web}/api/report?{query}&tenant=acme", "o")[1].count('"economics": null') == 1
        assert get(f"{web}/api/focus?{query}", "a")[0] == 403
        status, text = get(f"{web}/api/focus?{query}", "o")
        assert (status, text.splitlines()[0].split(",")[0]) == (200, "BilledCost")
        assert report.focus_from_url(web, "o", since="2026-11-02", until="2026-11-03") == text
    server = Server(folder, http=free, web=free, **held)  # type: ignore[arg-type]  # named above
    with running(server) as web:
        assert json.loads(get(f"{web}/api/report?{query}", None)[1])["economics"]["cost"] == 856.80


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Serves in a thread until the block ends; gives the page's address."""
    ready = threading.Event()
    thread = threading.Thread(target=server.serve_until_stopped, args=(lambda _: ready.set(),))
    thread.start()
    try:
        assert ready.wait(120)
        host, port = server.web_address
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        thread.join(120)


def get(url: str, token: str | None) -> tuple[int, str]:
    """Status and body."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=300) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
