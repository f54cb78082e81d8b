"""What tests of request handlers share: a clock that is told the time, and a sink in the exporter's place."""

from collections.abc import Callable, Mapping

import pytest

from mfu_sdk import testing
from mfu_sdk.records import DriftEvent, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.run import handler, opening
from mfu_sdk.run.clock import HostClock


class Sink:
    """Stands where the exporter stands and keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.requests: list[InferenceRecord] = []
        self.inference = self.requests.append
        self.configured_as: list[tuple[str, str]] = []
        self.drifts: list[DriftEvent] = []
        self.drift_scored: list[Mapping[str, float]] = []

    recorder = None

    def on_termination(self, close: Callable[[], object]) -> None: ...

    def step(self, record: StepRecord | Callable[[], StepRecord], row: object = None) -> None:
        self.steps.append(record() if callable(record) else record)

    def overhead(self, seconds: float) -> None: ...

    def configured(self, fingerprint: str, intent: str) -> None:
        self.configured_as.append((fingerprint, intent))

    def drift(self, event: DriftEvent) -> None:
        self.drifts.append(event)

    def drift_scores(self, scores: Mapping[str, float]) -> None:
        self.drift_scored.append(scores)

    def close(self, summary: object, *, error_type: str | None = None) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    """The device's clock and the one on which requests are timed."""
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    monkeypatch.setattr(handler, "now_ns", fake)
    return fake


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    found = Sink()
    monkeypatch.setattr(opening, "_telemetry", lambda _identity, _settings: found)
    return found
