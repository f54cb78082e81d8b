"""One stream of steps both ways: into the tenant's own watch, and over OTLP and the store to the provider."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import pytest
from opentelemetry.sdk.resources import Resource

from mfu_sdk import semconv
from mfu_sdk.drift.account import Asked
from mfu_sdk.drift.stream import Excursion
from mfu_sdk.drift.watch import Watch
from mfu_sdk.export.encode import Envelope, encode
from mfu_sdk.export.signals import UNSEEN, Signals
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.windows import Window as Closed
from mfu_sdk.export.windows import Windows, sums
from mfu_sdk.provider.baseline import learnt, reached, to_json
from mfu_sdk.provider.detection import Detection, Following, Window, window_of
from mfu_sdk.provider.findings import Findings
from mfu_sdk.provider.receive.otlp import decode_traces
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import SpanRow, Store
from mfu_sdk.records import DriftEvent, RunIdentity, StepRecord

T0 = 1_780_000_200 * 10**9
PEAK = 989e12
FLOPS = 40 * 10**12
STEPS = 4800
SLOW, BACK = 2900, 3900
"""Steps between which the run is slower."""


def step(index: int, start_unix_ns: int, duration_s: float, **changes: object) -> StepRecord:
    flops = changes.pop("model_flops", FLOPS)
    peak = changes.get("peak_flops_per_s", PEAK)
    assert isinstance(flops, int)
    assert isinstance(peak, float)
    mfu = flops / (peak * duration_s)
    record = StepRecord(
        index=index, phase="train", duration_s=duration_s, model_flops=flops, hardware_flops=flops,
        peak_flops_per_s=peak, peak_source="theory", mfu=mfu, hfu=mfu, mfu_by_dtype=None,
        expected_mfu=0.6, achievable_mfu=None, count_source="cached", coverage=1.0, tokens=8192, data_wait_s=0.001,
        comm_s=None, device_s=None, convention="exact", start_unix_ns=start_unix_ns, peak_dtype="bfloat16",
        batch_running=4.0,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]  # the fields of a step


def steps(change: Callable[[int, float], dict[str, object]] = lambda index, noise: {}) -> Iterator[StepRecord]:
    """Steps of 0.1 s with 2 % of noise, of whole microseconds; a counted one in every thousand is not timed."""
    noise = random.Random(7)
    at = T0
    for index in range(STEPS):
        factor = noise.lognormvariate(0.0, 0.02)
        made = dict(change(index, factor))
        slower = made.pop("slower", 1.0)
        assert isinstance(slower, float)
        duration_s = round(0.1 * factor * slower * 1e6) / 1e6
        counted = {"count_source": "measured"} if index % 1000 == 0 else {}
        yield step(index, at, duration_s, **counted, **made)
        at += round(duration_s * 1e9)


def slower(index: int, noise: float) -> dict[str, object]:
    return {"slower": 1.1} if SLOW <= index < BACK else {}


def told_by_the_process(records: Sequence[StepRecord], watch: Watch | None = None) -> list[Excursion]:
    watch = watch or Watch()
    found: list[Excursion] = []
    for each in records:
        if not each.timed:
            continue
        assert each.model_flops is not None
        assert each.hardware_flops is not None
        assert each.peak_flops_per_s is not None
        assert each.expected_mfu is not None
        expected_s = each.model_flops / (each.peak_flops_per_s * each.expected_mfu)
        asked = Asked(each.model_flops, each.hardware_flops, expected_s, each.peak_flops_per_s, None)
        excursion = watch.add(
            each.phase, asked, each.index, each.start_unix_ns, each.duration_s, each.tokens, each.data_wait_s,
            each.batch_running,
        )  # fmt: skip
        if excursion is not None:
            found.append(excursion)
    return found


def sent(
    records: Sequence[StepRecord],
    tenant: str,
    run_id: str = "run-1",
    seen: Callable[[Closed], Signals] = lambda _window: UNSEEN,
    fingerprint: str = "",
) -> list[SpanRow]:
    """The rows of the windows of `records`, as the exporter makes and the receiver reads them."""
    who = RunIdentity(run_id, 0, "llama", "f1", 0, 0, 1, "NVIDIA H100 80GB HBM3", "NVIDIA", "GPU-1", T0)
    spans, windows = Spans(who), Windows()
    closed = [window for each in records for window in windows.add(each)[1]] + windows.close()
    names = {semconv.RUN_ID: run_id, semconv.WORKLOAD_NAME: "llama", semconv.CONFIG_FINGERPRINT: fingerprint}
    resource = Resource({semconv.DIST_RANK: 0, **{name: value for name, value in names.items() if value}})
    body = Envelope(resource).request(
        [encode(spans.window(window, sums(window.steps), seen(window))) for window in closed]
    )
    return list(decode_traces(body, "protobuf", tenant, T0 + 10**13).rows)


def found_in(store: Store, tenant: str) -> list[DriftEvent]:
    found = Detection(store).look(T0 - 1, T0 + 10**13)
    return [event for (owner, _, _), (_, events) in found.items() if owner == tenant for event in events]


def test_both_ways(store: Store, tenant: str) -> None:
    """The same excursion: kind, measure, onset, when it was found and recovered, by how much and how surely."""
    records = list(steps(slower))
    began, ended = told_by_the_process(records)
    assert SLOW - 16 <= began.onset_step <= SLOW + 16
    store.insert_spans(tenant, sent(records, tenant))
    [event] = found_in(store, tenant)
    for name in ("kind", "phase", "measure", "onset_step", "found_step", "threshold"):
        assert getattr(event, name) == pytest.approx(getattr(began, name)), name
    assert event.recovered_step == ended.recovered_step
    assert event.change == pytest.approx(began.ratio - 1, abs=1e-9)
    assert event.score == pytest.approx(began.score, rel=1e-6)
    assert abs(event.onset_unix_ns - began.onset_unix_ns) < 1e6


def test_window_by_window(store: Store, tenant: str) -> None:
    """Looked at as they come, an hour late or twice, the windows say what they say at once."""
    rows = sent(list(steps(slower)), tenant)
    detection = Detection(store)
    for until in (5, 11, 12, len(rows)):
        store.insert_spans(tenant, rows[:until])
        latest = max(row.start_unix_ns for row in rows[:until]) + 1
        found = detection.look(T0 - 1, latest)
    [key] = [key for key in found if key[0] == tenant]
    assert found[key][1] == found_in(store, tenant)
    assert len(found[key][1]) == 1


def test_parts(store: Store, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fits into memory is read part by part, and more than a look may take is left to the next one."""
    store.insert_spans(tenant, sent(list(steps(slower)), tenant))
    monkeypatch.setattr("mfu_sdk.provider.detection.MOST_WINDOWS", 1)
    detection = Detection(store)
    first = detection.look(T0 - 1, T0 + 10**13, most_steps=1)
    assert all(not events for _, events in first.values())
    last = detection.look(T0 - 1, T0 + 10**13)
    assert [events for (owner, _, _), (_, events) in last.items() if owner == tenant] == [found_in(store, tenant)]


def test_quiet(tenant: str) -> None:
    """A run with nothing wrong has no event, and neither has one whose own process tells of drift."""
    following = Following()
    for row in sent(list(steps()), tenant):
        following.add(_window(row))
    assert following.events == []


def test_own_process_looks(store: Store, tenant: str) -> None:
    """Where the tenant's process tells of drift, the provider does not look a second time."""
    rows = sent(list(steps(slower)), tenant)
    drift = replace(rows[0], name=semconv.SPAN_DRIFT, span_id="f" * 16)
    store.insert_spans(tenant, [*rows, drift])
    assert found_in(store, tenant) == []


def fp32(index: int, noise: float) -> dict[str, object]:
    return {} if index < SLOW else {"slower": 4.0, "peak_flops_per_s": 67e12, "peak_dtype": "float32"}


def test_finding(store: Store, tenant: str) -> None:
    """A day's judgement names what the tenant's process did not look for: a fourth of the rate since step 2,900."""
    store.insert_spans(tenant, sent(list(steps(fp32)), tenant))
    kept = Findings(store)
    day = Range(T0, T0 + 3600 * 10**9)
    assert kept.judge(day, None, day.until_unix_ns) == ("2026-05-28",)
    assert kept.judge(day, None, day.until_unix_ns) == ()
    [found] = [each.finding for each in kept.kept(day, tenant) if each.finding.cause == "configuration_drift"]
    assert found.run_id == "run-1"
    assert "peak_dtype: bfloat16 → float32" in str(found.evidence["changed"])
    # 290 s at the full rate and 760 s at a fourth of it.
    assert found.loss_share == pytest.approx(0.75 * 760 / 1050, abs=0.03)


def test_what_changed(tenant: str) -> None:
    """A fall back to fp32 and a smaller batch are named; a slow clock with neither is the clock."""

    event = _only(steps(fp32), tenant)
    assert (event.cause, event.kind) == ("configuration_drift", "drop")
    assert "peak_dtype: bfloat16 → float32" in event.fingerprint_diff
    assert event.change == pytest.approx(-0.75, abs=0.01)

    def smaller(index: int, noise: float) -> dict[str, object]:
        if index < SLOW:
            return {}
        return {"slower": 0.6, "model_flops": FLOPS // 2, "batch_running": 2.0, "tokens": 4096}

    event = _only(steps(smaller), tenant)
    assert event.cause == "configuration_drift"
    # It was found within the window in which it changed, whose mean is of both.
    assert [each.partition(" →")[0] for each in event.fingerprint_diff] == ["batch: 4", "tokens a step: 8192"]

    def clocks(window: Window) -> Window:
        late = window.first_step >= SLOW
        return replace(window, clock=0.85 if late else 1.0, throttled=("hardware thermal slowdown",) if late else ())

    event = _only(steps(lambda index, noise: {"slower": 1 / 0.85} if index >= SLOW else {}), tenant, clocks)
    assert event.cause == "thermal_or_power"
    event = _only(steps(lambda index, noise: {"slower": 1.2} if index >= SLOW else {}), tenant)
    assert (event.cause, event.fingerprint_diff) == ("unknown", ())


def test_how_the_device_was(store: Store, tenant: str) -> None:
    """Clock and reasons go with the windows, over the wire and through the store, to the verdict."""

    def hot(window: Closed) -> Signals:
        late = window.steps[0].index >= SLOW
        return Signals(clock_ratio=0.7 if late else 1.0, throttled=("hardware thermal slowdown",) if late else ())

    records = list(steps(lambda index, noise: {"slower": 1 / 0.7} if index >= SLOW else {}))
    store.insert_spans(tenant, sent(records, tenant, seen=hot))
    [event] = found_in(store, tenant)
    assert event.cause == "thermal_or_power"
    assert event.evidence[:2] == ("the clock went to 70% of what it was", "hardware thermal slowdown")
    assert event.parts["clock"] == pytest.approx(math.log(0.7), abs=0.03)


def test_the_hosts_share(store: Store, tenant: str) -> None:
    """Of 0.12 s a step instead of 0.1 the host has all that is new: the split has it where windows tell of it."""

    def host(window: Closed) -> Signals:
        late = [each.index >= SLOW for each in window.steps]
        return Signals(comm_s=0.0, skew_s=0.0, host_s=math.fsum(0.03 if each else 0.01 for each in late))

    records = list(steps(lambda index, noise: {"slower": 1.2} if index >= SLOW else {}))
    for run_id, seen in (("host", host), ("untold", lambda _window: UNSEEN)):
        store.insert_spans(tenant, sent(records, tenant, run_id, seen))
    told, untold = found_in(store, tenant)
    assert told.parts["host"] == pytest.approx(math.log(1 / 1.2), abs=0.02)
    assert "host" not in untold.parts
    assert math.fsum(told.parts.values()) == pytest.approx(math.fsum(untold.parts.values()), abs=1e-9)


def test_a_fleets_baseline(store: Store, tenant: str) -> None:
    """What is served of three runs of a configuration is what these have learnt, and a fourth can begin with it.

    One that was too short has learnt nothing, and another tenant is told of none.
    """
    fingerprint, span = "0123456789abcdef", Range(T0, T0 + 10**13)
    own: list[Watch] = []
    for number, length in enumerate((2300, 2300, 2300, 400)):
        records = list(islice(steps(lambda _index, _noise, by=number: {"slower": 1 + 0.01 * by}), length))
        store.insert_spans(tenant, sent(records, tenant, f"run-{number}", fingerprint=fingerprint))
        own.append(Watch())
        assert told_by_the_process(records, own[-1]) == []
    served = json.loads(
        to_json(fingerprint, reached(store, fingerprint, span, tenant), learnt(store, fingerprint, span, tenant))
    )
    assert (len(served["runs"]), served["version"]) == (3, json.loads(own[0].state())["version"])
    assert learnt(store, fingerprint, span, "another") == ()
    # They ran side by side, and none of them is the latest: the slowest last.
    by_level = sorted(served["runs"], key=lambda run: -run[0][2]["levels"]["flop_rate"]["middle"])
    for watch, run in zip(own, by_level, strict=False):
        [[phase, load, baseline]], [[_, _, told]] = watch.baselines(), run
        assert (phase, load) == ("train", None)
        for measure in ("flop_rate", "token_rate"):
            assert told["levels"][measure] == pytest.approx(baseline["levels"][measure], abs=1e-4)
    for slowly, found in ((1.01, 0), (1.15, 1)):
        warm = Watch()
        assert warm.warm(served["runs"])
        fourth = list(islice(steps(lambda _index, _noise, by=slowly: {"slower": by}), 400))
        assert len(told_by_the_process(fourth, warm)) == found


def test_lengths_that_differ(tenant: str) -> None:
    """Steps of unequal work are each held to their own: half the work in half the time is no drift."""

    def ragged(index: int, noise: float) -> dict[str, object]:
        work = (1.0, 0.5, 0.25)[index % 3]
        return {"slower": work, "model_flops": round(FLOPS * work), "tokens": round(8192 * work)}

    windows = [_window(row) for row in sent(list(steps(ragged)), tenant)]
    following = Following()
    for window in windows:
        following.add(window)
    assert following.events == []


def test_bad_arrays() -> None:
    """What a client sent as arrays and is none, or is of two lengths, is passed over."""
    row: dict[str, object] = {"reasons": "", "durations_us": "[1,2]", "utilizations_bp": "[1]"}
    assert window_of(row) is None
    assert window_of({**row, "durations_us": "no array"}) is None
    assert window_of({**row, "durations_us": "[]", "utilizations_bp": "[]"}) is None


def _only(
    records: Iterator[StepRecord], tenant: str, change: Callable[[Window], Window] = lambda window: window
) -> DriftEvent:
    following = Following()
    for row in sent(list(records), tenant):
        following.add(change(_window(row)))
    [event] = following.events
    return event


def _window(row: SpanRow) -> Window:
    """A window's row as the store would give it."""

    def number(name: str) -> float | None:
        return float(row.attributes[name]) if name in row.attributes else None

    window = window_of(
        {
            "phase": row.attributes[semconv.PHASE],
            "start_unix_ns": row.start_unix_ns,
            "first_step": int(row.attributes[semconv.WINDOW_STEP_FIRST]),
            "durations_us": row.attributes[semconv.WINDOW_STEP_DURATIONS],
            "utilizations_bp": row.attributes[semconv.WINDOW_STEP_UTILIZATIONS],
            "timed": int(row.attributes[semconv.WINDOW_STEP_TIMED]),
            "unknown": int(row.attributes[semconv.WINDOW_STEP_UNKNOWN]),
            "steps": int(row.attributes[semconv.WINDOW_STEP_COUNT]),
            "model_flop": number(semconv.MODEL_FLOP),
            "hardware_flop": number(semconv.HARDWARE_FLOP),
            "peak_flops_per_s": number(semconv.PEAK_FLOP_RATE),
            "expected_mfu": number(semconv.EXPECTED),
            "tokens": int(row.attributes[semconv.TOKEN_COUNT]),
            "data_s": number(semconv.STEP_DATA_TIME),
            "comm_s": None,
            "skew_s": None,
            "host_s": None,
            "batch": number(semconv.BATCH_RUNNING),
            "clock": None,
            "reasons": "",
            "fingerprint": "",
            "peak_dtype": row.attributes[semconv.PEAK_DTYPE],
            "convention": row.attributes[semconv.CONVENTION],
        }
    )
    assert window is not None
    return window
