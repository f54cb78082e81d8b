"""One run's way out: records in, and nothing ever comes back to the user's code.

The caller pays for an append to a bounded queue. Windows, spans, metrics, encoding and delivery are the export
thread's (`worker`, `pipeline`).
"""

import time
from collections.abc import Callable, Mapping

from mfu_sdk import guard
from mfu_sdk.export.destination import delta_metrics, destination, metric_interval_s
from mfu_sdk.export.pipeline import Calibration, Close, Configured, DriftScores, Exports, Overhead, Pipeline
from mfu_sdk.export.worker import Worker
from mfu_sdk.records import DriftEvent, Peaks, RunIdentity, RunSummary, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import Settings


class Telemetry:
    """Made by `open`. Only `flush` and `stop` wait, nothing raises, and in a forked child nothing happens."""

    def __init__(self, pipeline: Pipeline, worker: Worker, unix_ns: Callable[[], int]) -> None:
        self._pipeline = pipeline
        self._worker = worker
        self._unix_ns = unix_ns
        self._dropped = 0

    @classmethod
    def open(
        cls,
        identity: RunIdentity,
        settings: Settings,
        *,
        env: Mapping[str, str] | None = None,
        unix_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> "Telemetry | None":
        """The way out for `identity`, or None if the environment names no collector (`destination.configured`).

        Loads OpenTelemetry's resource, starts no thread. `env` is the process's environment unless given; the
        resource's variables are always the process's. Raises `ConfigurationError` for an endpoint that is not a URL
        and for certificates that cannot be read.
        """
        if not settings.enabled:
            return None
        exports = Exports(
            destination("traces", env), destination("metrics", env), metric_interval_s(env), delta_metrics(env)
        )
        if exports.traces is None and exports.metrics is None:
            return None
        pipeline = Pipeline(identity, settings, exports, unix_ns=unix_ns, monotonic_s=monotonic_s)
        worker = Worker(str(identity.rank), pipeline, monotonic_s)
        pipeline.overflowed = lambda: worker.overflowed
        return cls(pipeline, worker, unix_ns)

    def step(self, record: StepRecord | Callable[[], StepRecord]) -> None:
        """Report one step, in the order of their ends; `record.start_unix_ns` places it in its window.

        Given as a function, the record is built on the export thread: building one costs more than handing it over.
        """
        self._worker.put(record)

    def inference(self, record: InferenceRecord) -> None:
        """Report one handled request."""
        self._worker.put(record)

    def calibration(self, peaks: Peaks, start_unix_ns: int, end_unix_ns: int) -> None:
        """Report a measurement of the device's peak. A peak from a cache is no measurement."""
        self._worker.put(Calibration(peaks, start_unix_ns, end_unix_ns))

    def configured(self, fingerprint: str, intent: str) -> None:
        """From here on the resource says by which hashes the run's configuration is known."""
        self._worker.put(Configured(fingerprint, intent))

    def drift(self, event: DriftEvent) -> None:
        """Report an excursion when it is found, and again when it has recovered: its span goes then, or at the end."""
        self._worker.put(event)

    def drift_scores(self, scores: Mapping[str, float]) -> None:
        """Report how much evidence for drift there is, by phase, over what an alarm needs."""
        self._worker.put(DriftScores(scores))

    def overhead(self, seconds: float) -> None:
        """Add `seconds` that the SDK took on the step path, since the last call."""
        self._worker.put(Overhead(seconds))

    def close(self, summary: RunSummary, *, error_type: str | None = None) -> None:
        """End the run now, without waiting; later records are ignored.

        What is left is delivered for at most `worker.LINGER_S`, and at the end of the process for `worker.EXIT_S`.
        """
        self._worker.close(Close(summary, error_type, self._unix_ns()))

    def flush(self, timeout_s: float) -> bool:
        """Send all that was recorded since the last flush: whether it was delivered, in full and within `timeout_s`.

        Closes the open window, so call it at the end of a phase and not at every step. After `close` it also waits
        for the thread to end.
        """
        with guard.shield("export"):
            sent = self._worker.flush(timeout_s)
            before, self._dropped = self._dropped, sum(self.dropped.values())
            return sent and self._dropped == before
        return False

    def stop(self, timeout_s: float) -> bool:
        """Deliver for at most `timeout_s`, then give up what is left: whether the thread has ended."""
        with guard.shield("export"):
            return self._worker.stop(timeout_s)
        return False

    @property
    def dropped(self) -> Mapping[str, int]:
        """Items that will never arrive, by reason: `queue_full`, `rejected` or `exit`."""
        return self._pipeline.dropped
