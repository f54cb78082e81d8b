"""A store of the module's own, and makers of spans; each test takes a tenant of its own, so tests share the store."""

import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from mfu_sdk import semconv
from mfu_sdk.provider import pages
from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.receive.otlp import decode_metrics
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import PointRow, SpanRow, Store

T0 = 1_780_000_200 * 10**9
"""2026-05-28T20:30:00Z, a whole five minutes."""

MINUTE = 60 * 10**9
Make = Callable[..., SpanRow]
_ids = itertools.count(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store in a directory of its own."""
    with Store(tmp_path_factory.mktemp("store") / "data") as opened:
        yield opened


@pytest.fixture(scope="session")
def artist() -> Iterator[Artist]:
    """One process that draws, for all tests."""
    with Artist() as found:
        yield found


@pytest.fixture
def page_of(artist: Artist) -> Callable[[Report], str]:
    """A report's page as one file."""
    return lambda report: pages.render_html(report, artist)


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test uses."""
    return f"tenant-{uuid.uuid4()}"


@pytest.fixture
def hour() -> Range:
    """The hour from T0."""
    return Range(T0, T0 + 60 * MINUTE)


@pytest.fixture
def span(tenant: str) -> Make:
    """Makes a span of this test's tenant: name, seconds after T0, duration in seconds, resource and attributes."""

    def make(
        name: str = semconv.SPAN_WINDOW,
        at_s: float = 0.0,
        duration_s: float = 30.0,
        *,
        resource: dict[str, object] | None = None,
        **attributes: object,
    ) -> SpanRow:
        identity: dict[str, object] = {
            semconv.TENANT_ID: tenant,
            semconv.SERVICE_NAME: "gpt",
            semconv.WORKLOAD_NAME: "gpt",
            semconv.RUN_ID: "run-1",
            semconv.RUN_ATTEMPT: 0,
            semconv.DIST_RANK: 0,
            semconv.DIST_WORLD_SIZE: 1,
            semconv.HOST_NAME: "node-1",
            semconv.HW_NAME: "H100",
            **(resource or {}),
        }
        number = next(_ids)
        return SpanRow(
            start_unix_ns=T0 + round(at_s * 1e9),
            duration_ns=round(duration_s * 1e9),
            trace_id=f"{number:032x}",
            span_id=f"{number:016x}",
            parent_span_id="",
            trace_state="",
            name=name,
            kind="Internal",
            service="gpt",
            resource={key: str(value) for key, value in identity.items() if value is not None},
            scope_name=semconv.SCOPE,
            scope_version="",
            attributes={key.replace("__", "."): _text(value) for key, value in attributes.items()},
            status_code="Unset",
            status_message="",
        )

    return make


@pytest.fixture
def window(span: Make) -> Make:
    """Makes a window of ten steps, nine of them timed, of 4 FLOP available to 1 FLOP of the model; over `changes`."""

    def make(at_s: float = 0.0, *, resource: dict[str, object] | None = None, **changes: object) -> SpanRow:
        attributes: dict[str, object] = {
            semconv.MODEL_FLOP: 1e15,
            semconv.AVAILABLE_FLOP: 4e15,
            semconv.WINDOW_STEP_COUNT: 10,
            semconv.WINDOW_STEP_TIMED: 9,
            semconv.WINDOW_STEP_UNKNOWN: 0,
            semconv.STEP_TIME: 27.0,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        kept = {key: value for key, value in attributes.items() if value is not None}
        return span(semconv.SPAN_WINDOW, at_s, resource=resource, **kept)

    return make


@pytest.fixture
def spans_of_a_fleet(window: Make, span: Make) -> list[SpanRow]:
    """Windows, steps, requests and runs of two workloads on two GPU types over five hours, in exact numbers."""
    rows = []
    for number in range(120):
        gpu = number % 4
        resource = {
            semconv.WORKLOAD_NAME: f"w{gpu % 2}",
            semconv.WORKLOAD_FAMILY: "f",
            semconv.CONFIG_INTENT: f"intent-{gpu % 2}",
            semconv.HW_NAME: "H100" if gpu < 2 else "A100",
            semconv.HW_ID: f"GPU-{gpu}",
            semconv.DIST_RANK: gpu,
            semconv.DIST_WORLD_SIZE: 1 + gpu % 2,
            semconv.RUN_ID: f"run-{gpu}",
            # The second attempt begins a hundred steps before the first one's end.
            semconv.RUN_ATTEMPT: number // 60,
            semconv.CONFIG_FINGERPRINT: "00000000000000ff",
        }
        at_s = 150.0 * number
        load: dict[str, Any] = {"mfu__phase": "decode" if gpu % 2 else "train", "mfu__token__count": 64}
        if gpu == 3:
            rows.append(span(semconv.SPAN_STEP, at_s, 2.0, resource=resource, mfu__model__flop=1e15, **load))
        else:
            rows.append(
                window(
                    at_s,
                    resource=resource,
                    mfu__expected=0.5,
                    mfu__expected__low=0.375,
                    mfu__expected__high=0.625,
                    mfu__expected__flop=2e15,
                    mfu__expected__available__flop=4e15,
                    mfu__window__step__first=10 * number - 100 * (number // 60),
                    mfu__batch__running=4.0,
                    mfu__batch__feasible=16.0,
                    mfu__expected__feasible=0.5,
                    mfu__count__coverage=0.5 + number / 1000,
                    **load,
                )
            )
        if number % 10 == 0:
            rows.append(span(semconv.SPAN_INFERENCE, at_s, 0.25, resource=resource, mfu__token__count=3))
            rows.append(span(semconv.SPAN_RUN, at_s, 60.0, resource=resource, mfu__count__uncounted='["odd::op"]'))
            rows.append(
                span(
                    semconv.SPAN_DRIFT,
                    at_s + 7.0,
                    20.0,
                    resource=resource,
                    mfu__phase="train",
                    mfu__drift__kind="drop",
                    mfu__drift__onset_step=number,
                )
            )
    return rows


@pytest.fixture
def points_of_a_fleet() -> Callable[[str], tuple[PointRow, ...]]:
    """What an exporter of that name tells of two GPUs, one of them idle, each half minute of five hours."""
    told = {
        "PROF_PIPE_TENSOR_ACTIVE": 0.25, "DEV_SM_CLOCK": 1024.0, "DEV_GPU_UTIL": 0.0, "DEV_XID_ERRORS": 79.0,
    }  # fmt: skip
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    for name, value in told.items():
        metric = metrics.add(name=f"DCGM_FI_{name}")
        for number in range(600):
            at_ns = T0 + number * 30 * 10**9
            busy = 100.0 if name == "DEV_GPU_UTIL" and number % 2 else value
            point = metric.gauge.data_points.add(time_unix_nano=at_ns, as_double=busy)
            labels = {"UUID": f"GPU-{number % 2}", "Hostname": "node-1", "modelName": "H100"}
            for key, text in labels.items():
                point.attributes.add(key=key).value.string_value = text
    body = request.SerializeToString()
    return lambda sender: decode_metrics(body, "protobuf", sender, T0 + 300 * MINUTE).rows


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory for a store that a test opens itself; no module store may be open beside it."""
    return tmp_path / "data"


def _text(value: object) -> str:
    return str(value)
