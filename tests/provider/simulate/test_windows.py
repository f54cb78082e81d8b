"""What a simulated fleet sends: real OTLP, whose windows add up."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mfu_sdk import semconv
from mfu_sdk.provider.receive.otlp import decode_metrics, decode_traces
from mfu_sdk.provider.simulate import dcgm, scenario, simulation, wire
from mfu_sdk.provider.simulate.outgoing import PROVIDER
from mfu_sdk.provider.simulate.planning import plan
from mfu_sdk.provider.simulate.windows import Form
from mfu_sdk.provider.simulate.workload import Plan
from mfu_sdk.provider.store import SpanRow

UNTIL_NS = 1_790_000_100 * 10**9
HOURS = 0.2
ZERO_NS = UNTIL_NS - 720 * 10**9
# More of what does not tell everything than a fleet has, so that a small one has each.
MISSING = {"no_links": 0.1, "no_load": 0.1, "no_clock": 0.1, "old_sdk": 0.1, "dcgm_only": 0.1, "nothing": 0.2}
NEGATIVES = {"kv_bound": 1, "prefill_heavy": 1, "right_sized_mig": 1, "changed_intent": 1}


@dataclass
class Raw:
    """Keeps the bytes."""

    raw: list[bytes] = field(default_factory=list)

    def spans(self, tenant: str, resource: bytes, spans: Sequence[bytes]) -> None:
        self.raw.append(wire.group(resource, spans))

    def metrics(self, tenant: str, resource: bytes, metrics: Sequence[bytes]) -> None:
        self.raw.append(wire.group(resource, metrics))


@dataclass
class Kept:
    """Keeps everything, as the provider would decode it."""

    rows: dict[str, list[SpanRow]] = field(default_factory=lambda: defaultdict(list))
    points: list[dict[str, object]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def spans(self, tenant: str, resource: bytes, spans: Sequence[bytes]) -> None:
        body = wire.group(resource, spans)
        self.raw.append(body)
        found = decode_traces(body, "protobuf", tenant, UNTIL_NS)
        assert found.rejected == 0
        self.rows[tenant] += found.rows

    def metrics(self, tenant: str, resource: bytes, metrics: Sequence[bytes]) -> None:
        found = decode_metrics(wire.group(resource, metrics), "protobuf", tenant, UNTIL_NS)
        assert found.rejected == 0
        self.points += [{**row.columns, "tenant": tenant} for row in found.rows]

    @property
    def all(self) -> list[SpanRow]:
        return [row for rows in self.rows.values() for row in rows]


def made(gpus: int, hours: float, seed: int) -> Plan:
    return plan(gpus, hours * 3600, replace(scenario.built_in(gpus), missing=MISSING, hard_negatives=NEGATIVES), seed)


def told(fleet: Plan) -> set[int | None]:
    """How many signals its workloads tell; None of one without an SDK, which here the provider's exporter sees."""
    seen = [each for each in fleet.workloads if each.signals is not None or each.dcgm]
    return {None if each.signals is None else len(each.signals) for each in seen}


def raw(seed: int) -> tuple[list[bytes], dict[str, object]]:
    kept = Raw()
    truth = simulation.simulate(made(40, 0.1, seed), UNTIL_NS, kept)
    return kept.raw, truth


@pytest.fixture(scope="module")
def sent() -> tuple[Kept, dict[str, object]]:
    """Some minutes of 80 GPUs with the built-in mix."""
    kept = Kept()
    varied = next(each for each in (made(80, HOURS, seed) for seed in range(100)) if told(each) >= {None, 0, 6})
    return kept, simulation.simulate(varied, UNTIL_NS, kept)


def numbers(row: SpanRow) -> dict[str, float]:
    return {name: float(text) for name, text in row.attributes.items() if text[:1].isdigit()}


def test_names_are_registered(sent: tuple[Kept, dict[str, object]]) -> None:
    """Every attribute of every span is one that the registry puts there, and every kind of span is sent."""
    places = {
        semconv.SPAN_WINDOW: "window", semconv.SPAN_RUN: "run", semconv.SPAN_CALIBRATION: "calibration",
        semconv.SPAN_INFERENCE: "inference",
    }  # fmt: skip
    assert {row.name for row in sent[0].all} == set(places)
    for row in sent[0].all:
        for name in row.attributes:
            assert places[row.name] in semconv.ATTRIBUTES[name].on, name
        for name in row.resource:
            assert "resource" in semconv.ATTRIBUTES[name].on, name


def test_windows_equal_their_arrays(sent: tuple[Kept, dict[str, object]]) -> None:
    """Durations add up to the step time, utilizations to the model FLOPs, and a window lies in one slot."""
    seen = 0
    for row in sent[0].all:
        if row.name != semconv.SPAN_WINDOW:
            continue
        seen += 1
        told = numbers(row)
        micros = json.loads(row.attributes[semconv.WINDOW_STEP_DURATIONS])
        points = json.loads(row.attributes[semconv.WINDOW_STEP_UTILIZATIONS])
        assert len(micros) == len(points) == told[semconv.WINDOW_STEP_COUNT] == told[semconv.WINDOW_STEP_TIMED]
        assert sum(micros) / 1e6 == pytest.approx(told[semconv.STEP_TIME], abs=1e-6 * len(micros))
        peak = told[semconv.PEAK_FLOP_RATE]
        assert told[semconv.AVAILABLE_FLOP] == pytest.approx(peak * told[semconv.STEP_TIME])
        by_steps = sum(point / 1e4 * micro / 1e6 for point, micro in zip(points, micros, strict=True)) * peak
        assert by_steps == pytest.approx(told[semconv.MODEL_FLOP], abs=0.5e-4 * peak * told[semconv.STEP_TIME] * 1.01)
        last_start_ns = row.start_unix_ns + row.duration_ns - micros[-1] * 1000
        assert row.start_unix_ns // 30_000_000_000 == (last_start_ns - 2_000) // 30_000_000_000
    assert seen > 300


def test_parts_of_a_step_are_disjoint(sent: tuple[Kept, dict[str, object]]) -> None:
    """Data, communication, skew and host together are less than the step; what a rank was not told stays out."""
    shares = [semconv.STEP_DATA_TIME, semconv.STEP_COMM_TIME, semconv.STEP_SKEW_TIME, semconv.STEP_HOST_TIME]
    for row in sent[0].all:
        if row.name == semconv.SPAN_WINDOW:
            told = numbers(row)
            assert sum(told.get(name, 0.0) for name in shares) < told[semconv.STEP_TIME]
            if row.resource[semconv.DIST_WORLD_SIZE] == "1":
                assert semconv.STEP_COMM_TIME not in told
            assert told.get(semconv.WITNESS_UTILIZATION, 0.5) <= 1


def test_ranks_conserve(sent: tuple[Kept, dict[str, object]]) -> None:
    """Ranks of one run agree on each window's steps and FLOPs, and share its trace, not its span."""
    windows: dict[tuple[str, str, str, str], list[SpanRow]] = defaultdict(list)
    for row in sent[0].all:
        if row.name == semconv.SPAN_WINDOW:
            phase, first = (row.attributes[name] for name in (semconv.PHASE, semconv.WINDOW_STEP_FIRST))
            windows[row.resource[semconv.RUN_ID], row.resource[semconv.RUN_ATTEMPT], phase, first].append(row)
    assert max(map(len, windows.values())) >= 4
    for rows in windows.values():
        assert len(rows) == int(rows[0].resource[semconv.DIST_WORLD_SIZE])
        assert len({row.attributes[semconv.MODEL_FLOP] for row in rows}) == 1
        assert len({row.trace_id for row in rows}) == 1
        assert len({row.span_id for row in rows}) == len(rows)
    ids = [(row.trace_id, row.span_id) for row in sent[0].all]
    assert len(ids) == len(set(ids))


def test_truth_is_the_sum_of_what_was_sent(sent: tuple[Kept, dict[str, object]]) -> None:
    """The truth file's fleet is Σ model FLOPs / Σ available FLOPs of the windows, its spans are all spans."""
    rows = [numbers(row) for row in sent[0].all if row.name == semconv.SPAN_WINDOW]
    truth = sent[1]["fleet"]
    assert isinstance(truth, dict)
    assert truth["model_flop"] == pytest.approx(sum(row[semconv.MODEL_FLOP] for row in rows))
    assert truth["available_flop"] == pytest.approx(sum(row[semconv.AVAILABLE_FLOP] for row in rows))
    assert truth["spans"] == len(sent[0].all)


def test_time_on_a_device_is_no_more_than_there_is(sent: tuple[Kept, dict[str, object]]) -> None:
    """Steps of a device add up to the fleet's time at most, but for the last step."""
    busy: dict[str, float] = defaultdict(float)
    for row in sent[0].all:
        if row.name == semconv.SPAN_WINDOW:
            busy[row.resource[semconv.HW_ID]] += numbers(row)[semconv.STEP_TIME]
            assert ZERO_NS <= row.start_unix_ns < UNTIL_NS
    assert max(busy.values()) <= HOURS * 3600 + 60


def test_nothing_is_told_without_its_signal(sent: tuple[Kept, dict[str, object]]) -> None:
    """A workload sends what its SDK tells and no more; one without an SDK sends no span."""
    names: dict[str, set[str]] = defaultdict(set)
    for row in sent[0].all:
        names[row.resource[semconv.WORKLOAD_NAME]] |= set(row.attributes) | set(row.resource)
    of_signal = {
        "identity": semconv.CONFIG_FINGERPRINT, "links": semconv.TOPOLOGY_LINK, "components": semconv.STEP_HOST_TIME,
        "load": semconv.QUEUE_WAITING, "clock": semconv.CLOCK_RATIO, "witness": semconv.WITNESS_UTILIZATION,
    }  # fmt: skip
    kinds = set()
    workloads = sent[1]["workloads"]
    assert isinstance(workloads, list)
    for workload in workloads:
        kinds.add(None if workload["signals"] is None else len(workload["signals"]))
        if workload["signals"] is None:
            assert workload["workload"] not in names
            continue
        for signal, name in of_signal.items():
            assert signal in workload["signals"] or name not in names[workload["workload"]], (workload, name)
    assert {None, 0, 6} <= kinds


def test_exporter_sees_what_the_provider_may(sent: tuple[Kept, dict[str, object]]) -> None:
    """DCGM's seven gauges come under the exporters' token, with dcgm-exporter's labels, in their ranges."""
    points = [point for point in sent[0].points if point["tenant"] == PROVIDER]
    assert {point["MetricName"] for point in points} == {
        dcgm.TENSOR_ACTIVE, dcgm.SM_CLOCK, dcgm.GPU_UTIL, dcgm.PCIE_TX, dcgm.PCIE_RX, dcgm.XID_ERRORS, dcgm.ECC_DOUBLE,
    }  # fmt: skip
    for point in points:
        labels, value = point["Attributes"], point["Value"]
        assert isinstance(labels, dict)
        assert isinstance(value, float)
        assert set(labels) == {"gpu", "UUID", "Hostname", "modelName"}
        if point["MetricName"] == dcgm.TENSOR_ACTIVE:
            assert 0 <= value <= 1
        elif point["MetricName"] == dcgm.SM_CLOCK:
            assert 200 < value < 2600
        elif point["MetricName"] in (dcgm.PCIE_TX, dcgm.PCIE_RX):
            assert 0 < value < 64e9


def test_bytes_are_otlp(sent: tuple[Kept, dict[str, object]]) -> None:
    """The messages of opentelemetry-proto read every field, and write the same message again."""
    for body in sent[0].raw[:50]:
        request = ExportTraceServiceRequest.FromString(body)
        assert ExportTraceServiceRequest.FromString(request.SerializeToString()) == request
        (group,) = request.resource_spans
        (scope,) = group.scope_spans
        assert scope.scope.name == semconv.SCOPE
        for span in scope.spans:
            assert (len(span.trace_id), len(span.span_id), span.kind, span.flags) == (16, 8, 1, 256)
    point = wire.point(5, 1.5, wire.text("a", "b", 7))
    read = ExportMetricsServiceRequest.FromString(wire.group(wire.resource({"n": -3}), [wire.gauge("g", "1", [point])]))
    (metric,) = read.resource_metrics[0].scope_metrics[0].metrics
    (found,) = metric.gauge.data_points
    assert (metric.name, metric.unit, found.time_unix_nano, found.as_double) == ("g", "1", 5, 1.5)
    assert found.attributes[0].value.string_value == "b"
    assert read.resource_metrics[0].resource.attributes[0].value.int_value == -3


def test_same_seed_same_bytes() -> None:
    """A seed gives one fleet, byte for byte, and another seed another one."""
    (first, truth), (second, again), (other, _) = raw(3), raw(3), raw(4)
    assert first == second
    assert truth == again
    assert first != other


def test_longer_windows_have_the_same_sums() -> None:
    """A fleet in windows of five minutes sends the same FLOPs in fewer spans."""
    planned = made(24, 0.25, 5)
    one = simulation.simulate(planned, UNTIL_NS, Raw())
    two = simulation.simulate(planned, UNTIL_NS, Raw(), form=Form(300_000_000_000, arrays=False))
    assert two["fleet"]["model_flop"] == pytest.approx(one["fleet"]["model_flop"])
    assert two["fleet"]["spans"] < one["fleet"]["spans"] / 4
