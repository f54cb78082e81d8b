"""What exporters told, as it is read for a range: held parts, slices, hours with steps, blanks, and laws of sums."""

from collections.abc import Callable, Mapping
from dataclasses import fields

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from mfu_sdk import semconv
from mfu_sdk.provider import fleet
from mfu_sdk.provider.books import Allocation, Holdings, Inventory, Node
from mfu_sdk.provider.fleet import Gpu
from mfu_sdk.provider.receive.otlp import decode_metrics
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import SpanRow, Store

T0 = 1_780_002_000
"""2026-05-28T21:00:00Z, in seconds; half an hour after the makers of spans begin."""
NS = 10**9
HOUR = Range(T0 * NS, (T0 + 3600) * NS)
H100 = "NVIDIA H100 80GB HBM3"
Tell = Callable[..., None]
Make = Callable[..., SpanRow]


@pytest.fixture
def host(request: pytest.FixtureRequest) -> str:
    """A host of this test's own."""
    return f"node-{request.node.name}"


@pytest.fixture
def tell(store: Store, host: str) -> Tell:
    """Stores one sample of a GPU of this host, at seconds after T0, by short names of metrics."""
    names = {"tensor": "PROF_PIPE_TENSOR_ACTIVE", "clock": "DEV_SM_CLOCK", "util": "DEV_GPU_UTIL"}

    def told(at_s: int, labels: Mapping[str, str] | None = None, **values: float) -> None:
        request = ExportMetricsServiceRequest()
        metrics = request.resource_metrics.add().scope_metrics.add().metrics
        for name, value in values.items():
            metric = metrics.add(name=f"DCGM_FI_{names[name]}")
            point = metric.gauge.data_points.add(time_unix_nano=(T0 + at_s) * NS, as_double=value)
            for key, text in {"UUID": f"GPU-{host}", "Hostname": host, "modelName": H100, **(labels or {})}.items():
                point.attributes.add(key=key).value.string_value = text
        decoded = decode_metrics(request.SerializeToString(), "protobuf", "provider:dcgm", T0 * NS)
        store.insert_points(decoded.rows)

    return told


def read(store: Store, host: str, span: Range = HOUR, *allocations: Allocation) -> list[Gpu]:
    """This host's GPUs; an inventory of one GPU on it where there are allocations."""
    node = Node(host, H100, 1, None, (f"GPU-{host}",), None, None, None, None, ())
    holdings = Holdings(Inventory((node,), allocations)) if allocations else None
    return [each for each in fleet.gpus(store, span, holdings) if each.host == host]


@pytest.mark.parametrize("named", [True, False], ids=["by its UUID", "by its host"])
def test_held_from_a_quarter_past(store: Store, host: str, tell: Tell, named: bool) -> None:
    """Busy until half past and held from :15 to :40: 15 of 25 minutes held were busy, whatever the hour's mean is."""
    for minute in range(0, 60, 5):
        tell(60 * minute + 7, util=100.0 if minute < 30 else 0.0)
    uuids = (f"GPU-{host}",) if named else ()
    times = (T0 + 900) * NS, (T0 + 2400) * NS
    held = Allocation("acme", None, None, host, 1, uuids, None, "on_demand", *times)
    (gpu,) = read(store, host, HOUR, held)
    assert (gpu.seconds, gpu.util_weighted) == (3600.0, 1800.0)
    assert gpu.held_s == pytest.approx(1500.0)
    assert gpu.util_held_weighted / gpu.util_held_s == pytest.approx(0.6)


def test_a_range_that_cuts_five_minutes(store: Store, host: str, tell: Tell) -> None:
    """From :02 to :08 three minutes of each of two five minutes count, each at its own mean."""
    tell(10, util=100.0)
    tell(310, util=0.0)
    (gpu,) = read(store, host, Range((T0 + 120) * NS, (T0 + 480) * NS))
    assert (gpu.seconds, gpu.util_weighted, gpu.util_s) == (360.0, 180.0, 360.0)


def test_slices_count_by_their_sms(store: Store, host: str, tell: Tell) -> None:
    """A slice of 3 of 7 SM shares at half of its pipes, and one that nobody knows: the latter is in no estimate."""
    tell(0, {"GPU_I_ID": "1", "GPU_I_PROFILE": "3g.40gb"}, tensor=0.5, clock=1830.0)
    tell(0, {"GPU_I_ID": "2", "GPU_I_PROFILE": "9g.99gb"}, tensor=0.5, clock=1830.0)
    known, unknown = sorted(read(store, host), key=lambda each: each.share or 0.0, reverse=True)
    assert unknown.share is None
    assert known.share is not None
    found = fleet.estimate([known, unknown])
    assert found.mfu == pytest.approx(0.5)
    assert found.gpu_hours == pytest.approx(known.share * 300 / 3600)
    assert found.gpus == 1


@pytest.mark.parametrize("by_uuid", [True, False], ids=["by its UUID", "by its host"])
def test_no_estimate_beside_steps(
    store: Store, host: str, tell: Tell, window: Make, tenant: str, by_uuid: bool
) -> None:
    """The hour in which the GPU (or, where no UUID is told, anything on its host) sent steps has no estimate."""
    for at_s in (60, 3660):
        tell(at_s, tensor=0.5, clock=1830.0)
    where = {semconv.HOST_NAME: host} | ({semconv.HW_ID: f"GPU-{host}"} if by_uuid else {})
    # 30 minutes after the makers' T0 is 21:00.
    store.insert_spans(tenant, [window(1830.0, resource=where)])
    (gpu,) = read(store, host, Range(T0 * NS, (T0 + 7200) * NS))
    assert (gpu.tensor_s, gpu.untold_s) == (600.0, 300.0)
    assert gpu.untold_mhz_s == pytest.approx(0.5 * 1830 * 300)


def test_what_cannot_be_is_not_known(store: Store, host: str, tell: Tell) -> None:
    """DCGM's blanks near 2^63, a share above 1 and a clock of 0 are no samples; a GPU with no other is not there."""
    tell(0, tensor=1.5, clock=9223372036854775794.0, util=9223372036854775794.0)
    tell(300, clock=0.0)
    assert read(store, host) == []
    tell(600, util=50.0)
    (gpu,) = read(store, host)
    assert (gpu.util_weighted, gpu.util_s, gpu.tensor_s, gpu.busy_mhz, gpu.untold_s) == (150.0, 300.0, 0.0, None, 0.0)


def test_a_point_sent_twice_changes_nothing(store: Store, host: str, tell: Tell) -> None:
    """A retry adds samples and moves neither means nor seconds."""
    for _ in range(2):
        tell(0, tensor=0.25, clock=1500.0, util=100.0)
        tell(60, tensor=0.75, clock=1600.0, util=100.0)
    (gpu,) = read(store, host)
    assert (gpu.seconds, gpu.tensor_weighted, gpu.busy_mhz) == (300.0, 150.0, 1550.0)


def test_ranges_add(store: Store, host: str, tell: Tell) -> None:
    """What is told of two ranges is the sum of what is told of each."""
    for minute in range(0, 60, 5):
        tell(60 * minute, tensor=minute / 100, clock=1500.0 + minute, util=90.0 + minute / 10)
    middle = (T0 + 1500) * NS
    held = Allocation("acme", None, None, host, 1, (), None, "on_demand", (T0 + 700) * NS, None)
    (whole,) = read(store, host, HOUR, held)
    parts = [read(store, host, span, held)[0] for span in (Range(T0 * NS, middle), Range(middle, (T0 + 3600) * NS))]
    for field in fields(Gpu):
        if field.name not in ("host", "gpu", "gpu_type", "share", "first_unix_ns"):
            total = sum(getattr(part, field.name) for part in parts)
            assert getattr(whole, field.name) == pytest.approx(total), field.name
