"""A store of the module's own, and makers of spans; each test takes a tenant of its own, so tests share the store."""

import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mfu_sdk import semconv
from mfu_sdk.provider import pages
from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import SpanRow, Store

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
def data_dir(tmp_path: Path) -> Path:
    """A directory for a store that a test opens itself; no module store may be open beside it."""
    return tmp_path / "data"


def _text(value: object) -> str:
    return str(value)
