"""What tests of request handlers share: a clock that is told the time, and a sink in the exporter's place."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import pytest

from mfu_sdk import testing
from mfu_sdk.export import flight
from mfu_sdk.export.signals import Observer
from mfu_sdk.records import DriftEvent, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.run import handler, opening
from mfu_sdk.run.clock import HostClock


class Sink:
    """Stands where the exporter stands and keeps what it is given; what it is given twice must be the same."""

    def __init__(self) -> None:
        self.recorder = self
        self._names: list[tuple[str | None, str | None]] = []
        self.steps: list[StepRecord] = []
        self.requests: list[InferenceRecord] = []
        self.inference = self.requests.append
        self.configured_as: list[tuple[str, str]] = []
        self.drifts: list[DriftEvent] = []
        self.drift_scored: list[Mapping[str, float]] = []

    def add_steps(
        self, records: Sequence[StepRecord | Callable[[], StepRecord]], rows: Sequence[flight.Row] | None
    ) -> None:
        assert rows is not None
        for record, row in zip(records, rows, strict=True):
            self.steps.append(made := record() if callable(record) else record)
            kept = made if made.error_type is None else dataclasses.replace(made, error_type=flight.OTHER_ERROR)
            assert flight.step_of(row, self._names) == kept

    def name(self, dtype: str | None, source: str | None) -> int:
        """As a flight recorder numbers the names of denominators."""
        self._names.append((dtype, source))
        return len(self._names) - 1

    def on_termination(self, close: Callable[[], object]) -> None: ...

    def observe(self, make: Callable[[], Observer]) -> None:
        self.observer = make()

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
