"""What spans in a store say of a workload: each signal by hand, from its span to the evidence.

One store takes the spans of all of these tests, each of a tenant of its own, and is asked once.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mfu_sdk import semconv
from mfu_sdk.provider import causes, findings, rollup
from mfu_sdk.provider.books import Holdings, load_inventory
from mfu_sdk.provider.causes import Drift, Evidence
from mfu_sdk.provider.causes.held import Heard, cut_of, idle_of
from mfu_sdk.provider.receive.otlp import decode_metrics
from mfu_sdk.provider.rollup import Range, Sums, Usage
from mfu_sdk.provider.simulate import dcgm, wire
from mfu_sdk.provider.store import PointRow, SpanRow, Store

from .conftest import approx

T0 = 1_780_000_200 * 10**9
HOUR = Range(T0, T0 + 3600 * 10**9)
NOON_S = 10 * 3600 + 1800.0
"""A whole hour, long after `HOUR`."""
EIGHT_HOURS = Range(T0 + round(NOON_S * 1e9), T0 + round((NOON_S + 8 * 3600) * 1e9))
H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989.4e12
Rows = list[SpanRow]
SENT: dict[str, Callable[[], Rows]] = {}
"""What each tenant sends; tenants are called by their tests."""
STEPS: dict[str, object] = {
    "mfu__phase": "train", "mfu__model__flop": 0.45 * PEAK * 30, "mfu__available__flop": PEAK * 30,
    "mfu__peak__dtype": "bfloat16", "mfu__step__time": 30.0, "mfu__window__step__count": 100,
    "mfu__window__step__timed": 100, "mfu__window__step__unknown": 0, "mfu__token__count": 819_200,
}  # fmt: skip
_ids = itertools.count(1)


def sends(make: Callable[[], Rows]) -> Callable[[], Rows]:
    SENT[make.__name__.removeprefix("of_")] = make
    return make


def row(
    name: str, at_s: float, duration_s: float, resource: dict[str, object], attributes: dict[str, object]
) -> SpanRow:
    number = next(_ids)
    who = {
        semconv.WORKLOAD_NAME: "gpt", semconv.RUN_ID: "run-1", semconv.RUN_ATTEMPT: 0, semconv.DIST_RANK: 0,
        semconv.DIST_WORLD_SIZE: 8, semconv.HW_NAME: H100, semconv.HOST_NAME: "node-0", semconv.WORKLOAD_FAMILY: "f1",
        semconv.CONFIG_FINGERPRINT: "new", semconv.CONFIG_INTENT: "i1", **resource,
    }  # fmt: skip
    return SpanRow(
        start_unix_ns=T0 + round(at_s * 1e9), duration_ns=round(duration_s * 1e9), trace_id=f"{number:032x}",
        span_id=f"{number:016x}", parent_span_id="", trace_state="", name=name, kind="Internal", service="gpt",
        resource={key: str(value) for key, value in who.items()}, scope_name=semconv.SCOPE, scope_version="",
        attributes={key.replace("__", "."): str(value) for key, value in attributes.items()}, status_code="Unset",
        status_message="",
    )  # fmt: skip


def span(
    name: str, at_s: float, duration_s: float, *, resource: dict[str, object] | None = None, **told: object
) -> SpanRow:
    return row(name, at_s, duration_s, resource or {}, told)


def rank(number: int = 0, at_s: float = 0.0, *, resource: dict[str, object] | None = None, **told: object) -> SpanRow:
    """A window of one rank of eight: 30 s of 100 steps at 0.45 of bf16's peak on paper."""
    who: dict[str, object] = {
        semconv.DIST_RANK: number, semconv.HW_ID: f"GPU-{number}", semconv.HOST_NAME: f"node-{number // 4}",
    }  # fmt: skip
    return row(semconv.SPAN_WINDOW, at_s, 30.0, {**who, **(resource or {})}, {**STEPS, **told})


class Told:
    """What the store told of all tenants."""

    def __init__(self, evidence: list[Evidence]) -> None:
        self._evidence = evidence

    def all(self, tenant: str) -> list[Evidence]:
        return [each for each in self._evidence if each.tenant == tenant]

    def one(self, tenant: str) -> Evidence:
        (found,) = self.all(tenant)
        return found

    def named(self, tenant: str) -> dict[str | None, Evidence]:
        return {each.workload: each for each in self.all(tenant)}


@pytest.fixture(scope="module")
def told(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Told:
    # In one insert, which is a second for all of them instead of one for each.
    store.insert_spans("all", [of_tenant(each, tenant) for tenant, make in SENT.items() for each in make()])
    store.insert_points(scraped())
    file = tmp_path_factory.mktemp("books") / "inventory.yaml"
    file.write_text(INVENTORY)
    return Told(causes.evidence(store, HOUR, Holdings(load_inventory([file]))))


def scraped() -> Sequence[PointRow]:
    """An exporter's hour: GPU-2 has work in three scrapes of twelve; from 21:00 on GPU-x 0.25 of its pipes busy."""
    seen = {"GPU-2": ((0.0,) * 12, (0.0,) * 9 + (3.0,) * 3), "GPU-x": ((0.25,) * 18, (100.0,) * 18)}
    gauges = []
    for device, columns in seen.items():
        who = wire.text("UUID", device, 7)
        for number, (active, util) in enumerate(zip(*columns, strict=True)):
            at_ns = T0 + 300 * number * 10**9
            for name, value in ((dcgm.TENSOR_ACTIVE, active), (dcgm.SM_CLOCK, 1830.0), (dcgm.GPU_UTIL, util)):
                gauges.append(wire.gauge(name, "", [wire.point(at_ns, value, who)]))
    # From 21:00 on GPU-x sends 20 GB/s over PCIe and receives 22; one sample is a blank of DCGM's, and is none.
    for number in range(6, 18):
        at_ns, who = T0 + 300 * number * 10**9, wire.text("UUID", "GPU-x", 7)
        for name, value in ((dcgm.PCIE_TX, 20e9), (dcgm.PCIE_RX, 22e9), (dcgm.PCIE_RX, 9.2e18)):
            gauges.append(wire.gauge(name, "", [wire.point(at_ns, value, who)]))
    # In the eight hours after noon GPU-0 has work at 1,647 MHz, GPU-1 at 1,830 and, for five minutes, none at 345.
    for number in range(8):
        at_ns = EIGHT_HOURS.since_unix_ns + number * 3600 * 10**9
        for device, samples in (("GPU-0", ((0, 1647.0, 100.0),)), ("GPU-1", ((0, 1830.0, 100.0), (600, 345.0, 0.0)))):
            for after_s, mhz, util in samples:
                point = at_ns + after_s * 10**9
                for name, value in ((dcgm.SM_CLOCK, mhz), (dcgm.GPU_UTIL, util)):
                    gauges.append(wire.gauge(name, "", [wire.point(point, value, wire.text("UUID", device, 7))]))
    body = wire.group(dcgm.resource("node-0"), gauges)
    return decode_metrics(body, "protobuf", "provider:exporters", HOUR.until_unix_ns).rows


def of_tenant(each: SpanRow, tenant: str) -> SpanRow:
    """A tenant's span, on GPUs that no other tenant has, but for those that the inventory or an exporter knows."""
    who = {**each.resource, semconv.TENANT_ID: tenant}
    if tenant not in ("books", "afternoon", "exported") and semconv.HW_ID in who:
        who[semconv.HW_ID] += f"-of-{tenant}"
    return replace(each, resource=who)


@pytest.fixture(scope="module")
def afternoon(told: Told, store: Store) -> Evidence:
    """What is known of `of_afternoon` over its eight hours."""
    assert told.all("afternoon") == []
    (found,) = causes.evidence(store, EIGHT_HOURS)
    return found


@sends
def of_afternoon() -> Rows:
    # A window of two ranks in each hour; from the sixth on one of them is waited for.
    return [
        rank(number, NOON_S + 3600 * hour, mfu__step__skew_time=0.3 if hour < 5 or number else 6.0)
        for hour in range(8)
        for number in range(2)
    ]


def test_hours_that_stand_out(afternoon: Evidence) -> None:
    """The hours in which ranks wait are evidence of their own, beside the day's sums that dilute them."""
    assert afternoon.skew == approx((5 * 0.01 + 3 * 0.105) / 8)
    [part] = afternoon.parts
    assert (part.worse, part.skew) == ("skew", approx(0.105))
    assert (part.since_unix_s, part.until_unix_s) == (
        EIGHT_HOURS.since_unix_ns // 10**9 + 5 * 3600,
        EIGHT_HOURS.until_unix_ns // 10**9,
    )
    assert (part.time_s, part.mfu) == (approx(6 * 30.0), approx(0.45))


def test_clock_from_the_exporter(afternoon: Evidence) -> None:
    """Who tells no clock has the exporter's, over the peak's 1,830 MHz, of the time that a device had work."""
    assert (afternoon.clock, afternoon.slowest_clock) == (approx(0.95), approx(0.9))


@sends
def of_shares() -> Rows:
    waits = [0.0 if number == 5 else 4.0 for number in range(8)]
    rows = [
        rank(number, mfu__step__data_time=3.0, mfu__step__comm_time=6.0, mfu__step__skew_time=wait)
        for number, wait in enumerate(waits)
    ]
    return [*rows, rank(0, 60)]


def test_shares_of_time(told: Told) -> None:
    """Seconds over the seconds of the steps that tell them; who waits least is waited for."""
    e = told.one("shares")
    assert (e.data, e.comm, e.skew) == (0.1, 0.2, approx(28 / 240))
    assert (e.late_rank, e.late_host) == (5, "node-1")
    assert (e.time_s, e.hosts, e.places) == (270.0, ("node-0", "node-1"), {"node": ("node-0", "node-1")})
    assert e.mfu == approx(0.45)
    assert e.flops_per_s == approx(0.45 * PEAK)
    assert e.tokens_per_s == approx(819_200 / 30)
    assert (e.rank_tokens, e.fingerprint, e.intent, e.phase) == (8192.0, "new", "i1", "train")
    # On paper at the highest clock, 1,980 MHz, where the reference has 1,830.
    assert e.claimed_peak is not None
    assert 0.9 < e.claimed_peak <= 1.0
    assert e.reference_flops_per_s == approx(PEAK, rel=1e-3)


@sends
def of_little() -> Rows:
    return [rank(0, 0, mfu__step__data_time=30.0), *[rank(0, 60 * number) for number in range(1, 5)]]


def test_little_that_is_known(told: Told) -> None:
    """A component that few steps tell is not known; nor is anything that nobody told, and never is it zero."""
    e = told.one("little")
    assert (e.data, e.comm, e.skew, e.clock, e.witness, e.link) == (None,) * 6
    assert "data" in e.untold


@sends
def of_waits() -> Rows:
    return [rank(number, mfu__step__comm_time=1.0 if number == 3 else 9.0) for number in range(8)]


def test_skew_by_waits(told: Told) -> None:
    """Where only waits for exchanges are told, the least of them is the exchange and the rest is for the late rank."""
    e = told.one("waits")
    assert (e.comm, e.skew) == (approx(1 / 30), approx(7 / 30))
    assert e.late_rank == 3
    assert [each.cause for each in causes.findings(e)] == ["straggler"]


@sends
def of_alone() -> Rows:
    return [rank(resource={semconv.DIST_WORLD_SIZE: 1, semconv.HW_NAME: "one of its kind"})]


def test_one_rank_waits_for_nobody(told: Told) -> None:
    """A run of one rank has neither communication nor skew, and says nothing of whether others tell theirs."""
    e = told.one("alone")
    assert (e.comm, e.skew) == (0.0, 0.0)
    assert {"comm", "skew", "clock"} <= e.untold


@sends
def of_links() -> Rows:
    def job(name: str, rate: float, size: float, many: int = 1, **more: object) -> Rows:
        who: dict[str, object] = {
            semconv.WORKLOAD_NAME: name, semconv.HW_NAME: "linked", semconv.TOPOLOGY_LINK: "nvlink",
            semconv.TOPOLOGY_LINK_BEST: "nvlink",
        }  # fmt: skip
        told = {"mfu__comm__bytes": size * 100, "mfu__comm__bus_rate": rate, **more}
        at_s = 600.0 if rate == 1e9 else 0.0
        return [rank(0, at_s + 60 * number, resource=who, **told) for number in range(many)]

    slow = job("slow", 50e9, 1e9, 3, mfu__comm__bus_rate__peak=60e9)
    others = job("fast", 300e9, 2e9) + job("faster", 320e9, 1e9) + job("small", 5e9, 1e6) + job("huge", 900e9, 1e12)
    return slow + others + job("passing", 290e9, 1e9, 4) + job("passing", 1e9, 1e9)


def test_rates_of_links(told: Told) -> None:
    """A passing congestion does not move the median; two others of a size tell what is best, one alone does not."""
    found = told.named("links")
    assert (found["slow"].bus_bytes_per_s, found["slow"].best_bus_bytes_per_s) == (50e9, 300e9)
    assert found["passing"].bus_bytes_per_s == 290e9
    # Nobody else has exchanges of this size.
    assert found["small"].best_bus_bytes_per_s is found["huge"].best_bus_bytes_per_s is None
    # Of a machine that nobody owns here one device was seen, which says nothing of how many it has.
    assert found["slow"].one_machine is None
    assert (found["slow"].link, found["slow"].type_link) == ("nvlink", "nvlink")


@sends
def of_clocks() -> Rows:
    kind: dict[str, object] = {semconv.HW_NAME: "clocked"}
    hot: dict[str, object] = {**kind, semconv.WORKLOAD_NAME: "hot"}
    capped = '["software power cap"]'
    rows = [rank(number, resource=kind, mfu__clock__ratio=0.9, mfu__throttle__reasons=capped) for number in range(7)]
    rows += [rank(7, resource=hot, mfu__clock__ratio=0.6, mfu__throttle__reasons='["hardware thermal slowdown"]')]
    return [*rows, rank(7, 60, resource=hot, mfu__clock__ratio=0.8)]


def test_clocks_and_cohort(told: Told) -> None:
    """Reasons count by their time; the cohort is every device of the type, the median of four at least."""
    found = told.named("clocks")
    assert (found["gpt"].clock, found["gpt"].cap, found["gpt"].heat) == (approx(0.9), 1.0, 0.0)
    assert (found["hot"].clock, found["hot"].heat) == (approx(0.7), 0.5)
    assert found["hot"].cohort_clock == found["gpt"].cohort_clock == approx(0.9)
    assert "clock" not in found["hot"].untold


@sends
def of_serving() -> Rows:
    who: dict[str, object] = {semconv.DIST_WORLD_SIZE: 1}
    told: dict[str, object] = {
        "mfu__batch__running": 4.0, "mfu__batch__feasible": 64.0, "mfu__queue__waiting": 0.0,
        "mfu__kv_cache__free_ratio": 0.8, "mfu__arithmetic_intensity": 8.0, "mfu__expected__feasible": 0.125,
        "mfu__expected__flop": 0.01 * PEAK * 30, "mfu__expected__available__flop": PEAK * 30,
        "mfu__model__flop": 0.01 * PEAK * 30,
    }  # fmt: skip
    rows = [
        row(semconv.SPAN_WINDOW, 0, 30, who, {**STEPS, **told, "mfu__phase": phase}) for phase in ("decode", "prefill")
    ]
    for at_s, token_s in ((1, 0.01), (2, 0.03)):
        rows.append(span(semconv.SPAN_INFERENCE, at_s, 2.0, mfu__inference__time_per_output_token=token_s))
    failed = span(semconv.SPAN_INFERENCE, 3, 9.0, error__type="E", mfu__inference__time_per_output_token=9.0)
    return [*rows, failed]


def test_serving(told: Told) -> None:
    """Loads are means over time; answers are those of requests that did not fail."""
    e = next(each for each in told.all("serving") if each.phase == "decode")
    assert (e.batch, e.feasible, e.queue, e.intensity) == (4.0, 64.0, 0.0, 8.0)
    assert (e.kv_free, e.feasible_mfu) == (approx(0.8), approx(0.125))
    assert (e.answer_s, e.latency_target_s) == (approx(0.02), None)
    assert e.ridge == approx(PEAK / 3350e9, rel=0.01)
    judged = causes.judge(told.all("serving"))
    assert [(each.cause, each.phase) for each in judged] == [("under_batched_inference", "decode")]


@sends
def of_accounts() -> Rows:
    return [
        rank(0, mfu__witness__utilization=0.2, mfu__hardware__flop=0.6 * PEAK * 30),
        rank(0, 30, mfu__hardware__flop=0.1 * PEAK * 30),
        rank(0, 30, mfu__hardware__flop=0.1 * PEAK * 30, resource={semconv.RUN_ID: "run-2"}),
    ]


def test_accounts(told: Told) -> None:
    """The witness stands against the FLOPs of its own windows; time is held against the clock on the wall."""
    e = told.one("accounts")
    assert (e.witness, e.witnessed_mfu) == (approx(0.2), approx(0.6))
    # 90 s of steps in the minute from the first window to the end of the last.
    assert e.wall == approx(1.5)


@sends
def of_ranks() -> Rows:
    def two(name: str, dp: int) -> Rows:
        who: dict[str, object] = {semconv.DIST_AXES["dp"]: dp, semconv.WORKLOAD_NAME: name}
        return [rank(0, resource=who), rank(1, resource=who, mfu__model__flop=0.9 * PEAK * 30)]

    return two("data-parallel", 8) + two("others", 4)


def test_ranks_conserve(told: Told) -> None:
    """Data-parallel ranks do the same for each token; others need not."""
    found = told.named("ranks")
    assert (found["data-parallel"].rank_spread, found["others"].rank_spread) == (approx(2.0), None)


@sends
def of_earlier() -> Rows:
    def run(name: str, at_s: float, fingerprint: str, **resource: object) -> SpanRow:
        who: dict[str, object] = {semconv.RUN_ID: name, semconv.CONFIG_FINGERPRINT: fingerprint, **resource}
        return rank(0, at_s, resource=who, mfu__token__count=1_024_000, mfu__model__flop=0.5625 * PEAK * 30)

    day = 86_400
    return [
        run("a", -day, "old"), run("b", -7200, "old"), run("c", -7200, "older", **{semconv.HW_NAME: "L40S"}),
        run("d", -7200, "old", **{semconv.DIST_WORLD_SIZE: 4}), run("e", -100 * day, "old"),
        rank(0, resource={semconv.RUN_ID: "now"}), run("f", 1200, "newer"),
    ]  # fmt: skip


def test_earlier_runs(told: Told) -> None:
    """Runs that began before are earlier ones, of the same work and kind, and others are none."""
    e = next(each for each in told.all("earlier") if each.fingerprint == "new")
    assert [(each.run_id, each.fingerprint) for each in e.earlier] == [("a", "old"), ("b", "old")]
    assert e.earlier[0].tokens_per_s == approx(1_024_000 / 30)
    assert e.earlier[0].flops_per_s == approx(0.5625 * PEAK)
    assert e.smaller is not None
    assert (e.smaller.world_size, e.smaller.rank_tokens) == (4, 10_240.0)


@sends
def of_silent_fp32() -> Rows:
    def run(name: str, at_s: float, fingerprint: str, share: float, peak: float, dtype: str) -> SpanRow:
        who: dict[str, object] = {
            semconv.RUN_ID: name, semconv.CONFIG_FINGERPRINT: fingerprint, semconv.DIST_WORLD_SIZE: 1,
            semconv.HW_NAME: "NVIDIA A100-SXM4-80GB",
        }  # fmt: skip
        told: dict[str, object] = {
            "mfu__model__flop": share * 140e12 * 30, "mfu__available__flop": peak * 30, "mfu__peak__dtype": dtype,
            "mfu__token__count": round(share * 819_200), "mfu__step__data_time": 0.3,
        }  # fmt: skip
        return row(semconv.SPAN_WINDOW, at_s, 30, who, {**STEPS, **told})

    fast = [run(name, at_s, "old", 1.0, 312e12, "bfloat16") for name, at_s in (("a", -7200), ("b", -3600))]
    return [*fast, run("c", 0, "new", 0.1, 19.5e12, "float32")]


def test_silent_fp32(told: Told) -> None:
    """MFU went from 0.45 to 0.72 and the work takes ten times as long: told between runs, from spans alone."""
    [found] = causes.judge(told.all("silent_fp32"))
    assert (found.cause, found.run_id, found.loss_share) == ("configuration_drift", "c", approx(0.9))
    # Nobody tells a clock of this type: of five signs that is the one that is missing.
    assert found.confidence == approx(0.5 + 0.45 * 4 / 5)
    assert found.evidence["mfu_over_bf16_reference"] == approx(14 / 312, rel=0.01)
    assert found.evidence["mfu_over_bf16_reference_before"] == approx(140 / 312, rel=0.01)
    assert "peak of 312 TFLOP/s instead of 20" in found.remedy


@sends
def of_excursions() -> Rows:
    def drift(number: int, at_s: float, duration_s: float, onset: int, kind: str = "drop", **more: object) -> SpanRow:
        told = {"mfu__phase": "train", "mfu__drift__kind": kind, "mfu__drift__change": -0.2,
                "mfu__drift__onset_step": onset, "mfu__drift__cause": "configuration_drift",
                "mfu__drift__fingerprint__diff": '["torch: 2.6 → 2.7"]'}  # fmt: skip
        return span(semconv.SPAN_DRIFT, at_s, duration_s, resource={semconv.DIST_RANK: number}, **told, **more)

    recovered = drift(0, 0, 150, 1, mfu__drift__recovered_step=9)
    return [
        rank(0, 0),
        rank(0, 570),
        recovered,
        drift(0, 300, 10, 40),
        drift(1, 310, 10, 41),
        drift(0, 100, 60, 20, "rise"),
    ]


def test_excursions(told: Told) -> None:
    """The share of the time that one lay in; of several ranks' telling of it one counts, and rises do not."""
    diff = ("torch: 2.6 → 2.7",)
    assert set(told.one("excursions").drifts) == {
        Drift("configuration_drift", -0.2, 1, 0.25, diff),
        # It has not recovered, and goes on to the end.
        Drift("configuration_drift", -0.2, 40, 0.5, diff),
    }


@sends
def of_places() -> Rows:
    who: dict[str, object] = {
        "hw.driver_version": "550.54", "container.image.name": "train", "container.image.tags": '["7"]',
        "k8s.node.label.cloud.google.com/gke-nodepool": "h100-a", "cloud.availability_zone": "eu-1b",
        semconv.K8S_NODE_NAME: "gke-1",
    }  # fmt: skip
    return [rank(0, resource=who)]


def test_places(told: Told) -> None:
    """Where it runs, as far as it is told: driver, image, pool, zone and node."""
    assert told.one("places").places == {
        "node": ("gke-1",), "driver": ("550.54",), "image": ('train ["7"]',), "pool": ("h100-a",), "zone": ("eu-1b",),
    }  # fmt: skip


@sends
def of_phases() -> Rows:
    rows = [rank(0, 60 * number) for number in range(20)]
    brief = rank(0, 1260, mfu__phase="eval", mfu__step__data_time=30.0)
    return [*rows, brief, *[rank(0, 1300 + 40 * number, mfu__phase="checkpoint") for number in range(9)]]


def test_short_phases(told: Told) -> None:
    """A phase with less than 5 % of a workload's time is none of its causes, nor are checkpoints."""
    assert [each.phase for each in told.all("phases")] == ["train"]


@sends
def of_nonsense() -> Rows:
    wild: dict[str, object] = {
        "mfu__comm__bus_rate": "inf", "mfu__comm__bus_rate__peak": "nan", "mfu__step__comm_time": "1e308",
        "mfu__step__skew_time": "-1", "mfu__step__data_time": "1e20", "mfu__clock__ratio": "-3",
        "mfu__witness__utilization": "nan", "mfu__throttle__reasons": "no array", "mfu__comm__bytes": "1e308",
        "mfu__token__count": 0,
    }  # fmt: skip
    drift = span(semconv.SPAN_DRIFT, 0, 1, mfu__phase="train", mfu__drift__kind="drop", mfu__drift__change="-1e300",
                 mfu__drift__cause="configuration_drift", mfu__drift__fingerprint__diff='["a"]')  # fmt: skip
    rows = [
        row(semconv.SPAN_WINDOW, 60 * number, 30, {semconv.HW_NAME: "H100"}, {**STEPS, **wild}) for number in range(2)
    ]
    return [*rows, drift]


def test_nonsense(told: Told) -> None:
    """Whatever a client claims, shares stay shares and every figure is a number that JSON has."""
    e = told.one("nonsense")
    assert (e.data, e.skew, e.witness, e.rank_tokens) == (1.0, None, None, 0.0)
    for each in causes.findings(e):
        assert 0 <= each.loss_share <= 1
        json.dumps(dict(each.evidence), allow_nan=False)


@sends
def of_exported() -> Rows:
    seen: dict[str, object] = {
        "mfu__utilization": 0.45,
        "mfu__dtype__utilization": 0.45,
        "mfu__witness__utilization": 0.45,
    }
    who: dict[str, object] = {semconv.HW_ID: "GPU-x"}
    # Half of each minute from 21:00 to 22:00.
    return [rank(0, 1800 + 60 * n, resource=who, mfu__hardware__flop=0.45 * PEAK * 30, **seen) for n in range(60)]


def test_exporter(store: Store, told: Told) -> None:
    """The provider's own witness goes before the tenant's, over the whole hour: 0.25 at the clock of the peak.

    Half of the hour at 0.45 is 0.225: the pipes did that. A range without a whole hour has the tenant's word alone.
    """
    whole = Range(T0 + 1800 * 10**9, T0 + 5400 * 10**9)
    usages = [usage for usage in rollup.usages(store, whole, None) if usage.tenant == "exported"]
    [e] = [each for each in causes.evidence(store, whole, usages=usages) if each.tenant == "exported"]
    assert (e.witness, e.witnessed_mfu) == (approx(0.25, rel=1e-3), approx(0.225))
    assert (e.watched_gpu_hours, e.watched_devices) == (1.0, {"GPU-x": 1.0})
    assert (e.pcie_tx_bytes_per_s, e.pcie_rx_bytes_per_s) == (20e9, 22e9)
    assert list(causes.testimony([e], usages).values()) == ["witnessed"]
    half = told.one("exported")
    assert (half.witness, half.watched_gpu_hours) == (approx(0.45), None)
    assert (half.pcie_tx_bytes_per_s, half.pcie_rx_bytes_per_s) == (None, None)
    assert causes.testimony([half], usages) == {}


INVENTORY = """
nodes: [{host: mig-1, gpu_type: "NVIDIA H100 80GB HBM3", gpus: 2, link: pcie, from: 2026-01-01},
        {host: node-0, gpu_type: "NVIDIA H100 80GB HBM3", gpus: 8, link: nvlink, from: 2026-01-01}]
allocations:
  - {tenant: books, workload: whatever, host: node-0, gpus: 2, gpu_uuids: [GPU-0, GPU-1], contract: on_demand,
     from: 2026-05-28T20:30:00Z, until: 2026-05-28T21:30:00Z}
  - {tenant: books, workload: dead, host: node-0, gpus: 1, gpu_uuids: [GPU-2], contract: on_demand,
     from: 2026-05-28T20:30:00Z}
  - {tenant: books, workload: unheard, host: node-0, gpus: 1, gpu_uuids: [GPU-3], contract: on_demand,
     from: 2026-05-28T20:30:00Z}
mig: [{host: mig-1, gpu: 0, layout: ["3g.40gb", "1g.10gb"], from: 2026-01-01},
      {host: mig-1, gpu: 1, layout: ["3g.40gb", "3g.40gb"], from: 2026-01-01}]
queue: [{profile: "4g.40gb", waiting: 3, at: 2026-05-28T20:40:00Z},
        {profile: "1g.10gb", waiting: 1, at: 2026-05-28T20:50:00Z},
        {profile: "4g.40gb", waiting: 9, at: 2026-05-28T22:00:00Z}]
"""


@sends
def of_books() -> Rows:
    sliced: dict[str, object] = {
        semconv.HOST_NAME: "mig-1", semconv.WORKLOAD_NAME: "sliced", semconv.MIG_PROFILE: "3g.40gb",
        semconv.HW_ID: "MIG-1", semconv.HW_PARENT: "GPU-m",
    }  # fmt: skip
    # Two processes are heard for the whole hour, and one of their windows has steps.
    heard = [
        span(semconv.SPAN_RUN, 0, 3600, resource={semconv.DIST_RANK: number, semconv.HW_ID: f"GPU-{number}"})
        for number in range(2)
    ]
    dead = span(semconv.SPAN_RUN, 0, 1800, resource={semconv.WORKLOAD_NAME: "dead", semconv.HW_ID: "GPU-2"})
    return [rank(0, resource=sliced), rank(0), *heard, dead]


def test_books(told: Told) -> None:
    """Slices between which nothing fits, and allocations that are heard and do nothing, whatever they are called."""
    found = told.named("books")
    # 3 of 7 slices and 1 of 7 lie bare, on two GPUs; three of four that wait find no place for 4g.40gb.
    assert found["sliced"].stranded == approx((3 / 7 + 1 / 7) / 2)
    assert (found["sliced"].unplaceable, found["sliced"].wanted) == (0.75, "4g.40gb")
    assert found["gpt"].idle == approx(1 - 30 / 7200)
    assert (found["gpt"].replicas, found["dead"].replicas) == (2, 1)
    assert (found["gpt"].working, found["dead"].working) == (0, 0)
    # Heard for half of the hour that it holds; an exporter saw it without work for three quarters.
    assert found["dead"].idle == approx(0.75)
    assert found.keys() == {"sliced", "gpt", "dead"}
    assert (found["gpt"].type_link, found["gpt"].one_machine) == ("nvlink", True)
    named = {(each.workload, each.cause) for each in causes.judge(found.values())}
    assert {("sliced", "mig_fragmentation"), ("gpt", "idle_allocation"), ("dead", "idle_allocation")} <= named


SERVED = """
nodes: [{host: h, gpu_type: "NVIDIA H100 80GB HBM3", gpus: 4}]
allocations: [{tenant: t, host: h, gpus: 4, gpu_uuids: [G0, G1, G2, G3], contract: on_demand, from: 2026-01-01}]
"""


def test_idle_beside_work(tmp_path: Path) -> None:
    """Of four devices that are heard two work, one has nothing to do and one has it for half of the hour."""
    (file := tmp_path / "inventory.yaml").write_text(SERVED)
    stepped = {"G0": 3600.0, "G1": 1801.0, "G3": 1800.0}
    usages = [
        Usage("t", "chat", None, H100, 1, "h", device, (), Sums(device_s=seconds))
        for device, seconds in stepped.items()
    ]
    heard = [Heard("t", "chat", "h", f"G{number}", 3600.0) for number in range(4)]
    [(name, found)] = idle_of(Holdings(load_inventory([file])), usages, heard, HOUR).items()
    assert (name, found.devices, found.working) == (("t", "chat", H100), 4, 2)
    assert found.share == approx((3600 + 1800) / (4 * 3600))


@sends
def of_quiet() -> Rows:
    def sixteen(name: str, link: str | None, **told: float) -> SpanRow:
        who: dict[str, object] = {
            semconv.WORKLOAD_NAME: name, semconv.DIST_WORLD_SIZE: 16, semconv.DIST_AXES["dp"]: 16,
        }  # fmt: skip
        told_link = {} if link is None else {semconv.TOPOLOGY_LINK: link}
        return rank(0, 0.0, resource={**who, **told_link}, **told)

    bytes_of_window = 100 * 10e9
    attention = 0.25 * 0.45 * PEAK * 30
    return [
        sixteen("a", "network", mfu__comm__bus_rate=50e9, mfu__comm__bytes=bytes_of_window),
        sixteen("b", "network", mfu__comm__bus_rate=40e9, mfu__comm__bytes=bytes_of_window),
        sixteen("quiet", None, mfu__attention__flop__exact=attention),
        sixteen("no attention", None),
    ]


def test_gradients_of_who_tells_no_rate(told: Told) -> None:
    """What its weights' gradients take at what two others reached, of its step of 0.3 s; attention has no weights."""
    found = told.named("quiet")
    weights = 0.75 * 0.45 * PEAK * 30 / 819_200 / 6
    assert found["quiet"].least_comm == approx(2 * 15 / 16 * 2 * weights / 40e9 / 0.3)
    assert found["no attention"].least_comm is None


def test_without_books(told: Told, store: Store) -> None:
    """Without an inventory neither is reckoned, and that is said."""
    judged = findings.judge(store, HOUR)
    assert judged.left_out == {"mig_fragmentation": "no inventory", "idle_allocation": "no inventory"}
    assert all(e.stranded is e.idle is None for e in judged.evidence)
    assert not {"mig_fragmentation", "idle_allocation"} & {each.cause for each in judged.findings}


RIGHT_SIZED = """
nodes: [{host: h, gpu_type: "NVIDIA H100 80GB HBM3", gpus: 1}]
allocations: [{tenant: t, host: h, gpus: 1, profile: "4g.40gb", contract: on_demand, from: 2026-01-01}]
mig: [{host: h, gpu: 0, layout: ["4g.40gb", "3g.40gb"]}]
queue: [{profile: "PROFILE", waiting: 2, at: 2026-05-28T20:40:00Z}]
"""


@pytest.mark.parametrize(
    ("profile", "stranded", "unplaceable"),
    # The free slice is asked for, or is in the way of what is.
    [("3g.40gb", 0.0, 0.0), ("2g.20gb", 3 / 7, 1.0)],
)
def test_right_sized(tmp_path: Path, profile: str, stranded: float, unplaceable: float) -> None:
    """A layout that covers its GPU strands nothing as long as something waits for its free slices."""
    (file := tmp_path / "inventory.yaml").write_text(RIGHT_SIZED.replace("PROFILE", profile))
    cut = cut_of(Holdings(load_inventory([file])), "h", HOUR)
    assert cut is not None
    assert (cut.stranded, cut.unplaceable) == (approx(stranded), unplaceable)
