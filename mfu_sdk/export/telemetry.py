"""One run's ways out: records in, and nothing ever comes back to the user's code.

The caller pays for a record in the flight recorder and an append to a bounded queue. Windows, spans, metrics, encoding
and delivery are the export thread's (`worker`, `pipeline`). The tenant's collector and the provider's have a queue, a
thread and a back-off each, so that neither waits for the other.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time_ns

from opentelemetry.sdk.resources import Resource

from mfu_sdk import guard
from mfu_sdk.export import allowed, sigterm
from mfu_sdk.export.destination import delta_metrics, destination, disabled, metric_interval_s, of_provider
from mfu_sdk.export.flight import Row
from mfu_sdk.export.pipeline import Calibration, Close, Configured, DriftScores, Exports, Overhead, PeakRatios, Pipeline
from mfu_sdk.export.recorder import Recorder
from mfu_sdk.export.resource import resource
from mfu_sdk.export.scrape import Asked, Scraped, ScrapeServer, need_prometheus
from mfu_sdk.export.signals import Observer
from mfu_sdk.export.worker import Worker
from mfu_sdk.records import DriftEvent, Peaks, RunIdentity, RunSummary, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import Settings


@dataclass(frozen=True, slots=True)
class Lane:
    """The pipeline of one collector, or of the scrape port, and the thread that runs it."""

    pipeline: Pipeline | Scraped
    worker: Worker


class Telemetry:
    """Made by `open`. Only `flush`, `stop` and `terminate` wait, nothing raises, and in a forked child nothing happens.

    `recorder` keeps what the provider's collector has not got, or, where there is none, the tenant's.
    """

    def __init__(self, lanes: tuple[Lane, ...], unix_ns: Callable[[], int], recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self._lanes = lanes
        self._workers = tuple(lane.worker for lane in lanes)
        self._unix_ns = unix_ns
        self._dropped = 0
        self._end: Callable[[], object] = lambda: None

    @classmethod
    def open(
        cls,
        identity: RunIdentity,
        settings: Settings,
        *,
        env: Mapping[str, str] | None = None,
        unix_ns: Callable[[], int] = time_ns,
        monotonic_s: Callable[[], float] = monotonic,
    ) -> "Telemetry | None":
        """The way out for `identity`, or None if nothing names a collector (`destination.configured`) or a scrape port.

        Loads OpenTelemetry's resource, starts no thread but the one that watches for SIGTERM (`sigterm`) and the one
        that listens on the scrape port. `env` is the process's environment unless given; the resource's variables are
        always the process's. Raises `ConfigurationError` for an endpoint that is not a URL and for certificates that
        cannot be read, `MissingDependencyError` without an extra that the settings need.
        """
        if not settings.enabled:
            return None
        sinks = tuple(_sinks(settings, env))
        scraped = settings.prometheus_port > 0 and not disabled(env)
        if scraped:
            need_prometheus()
        if not sinks and not scraped:
            return None
        who = resource(identity)
        recorder = None
        if any(exports.traces is not None for exports in sinks):
            kept = allowed.resource(who.attributes, model_class=settings.provider.model_class)
            recorder = Recorder.open(identity, kept, settings)
        kept_for = next((exports for exports in sinks if exports.traces is not None), None)
        lanes: list[Lane] = []
        for exports in sinks:
            pipeline = Pipeline(
                identity,
                settings,
                exports,
                unix_ns=unix_ns,
                monotonic_s=monotonic_s,
                resource=who,
                recorder=recorder if exports is kept_for else None,
            )
            name = f"provider-{identity.rank}" if exports.aggregates_only else str(identity.rank)
            worker = Worker(name, pipeline, monotonic_s)
            pipeline.overflowed = _overflowed(worker)
            lanes.append(Lane(pipeline, worker))
        opened = cls(tuple(lanes), unix_ns, recorder)
        if scraped:
            lanes.append(opened._listen(identity, settings, who, monotonic_s))
        for lane in lanes:
            # Of both: a collector is told what telling costs the process, not what telling that one does.
            lane.pipeline.export_s = lambda: sum(each.worker.cpu_s for each in lanes)
        with guard.shield("SIGTERM"):
            sigterm.watch(opened)
        return opened

    def _listen(
        self, identity: RunIdentity, settings: Settings, who: Resource, monotonic_s: Callable[[], float]
    ) -> Lane:
        """The lane of the scrape port, beside those that there are."""
        pipeline = Scraped(identity, settings, who, self._unix_ns)
        worker = Worker(f"prometheus-{identity.rank}", pipeline, monotonic_s)
        pipeline.overflowed = _overflowed(worker)
        pipeline.lost = lambda: self.dropped

        def ask(scrape: Asked) -> None:
            worker.put(scrape)
            worker.ask()

        # Ranks of a host listen side by side.
        port = settings.prometheus_port + (identity.local_rank or 0)
        pipeline.server = ScrapeServer.open(settings.prometheus_host, port, ask)
        lane = Lane(pipeline, worker)
        self._lanes = (*self._lanes, lane)
        self._workers = (*self._workers, worker)
        return lane

    def on_termination(self, close: Callable[[], object]) -> None:
        """What closes the run where SIGTERM ends the process (`sigterm`); it calls `close` in its turn."""
        self._end = close

    def observe(self, make: Callable[[], Observer]) -> None:
        """Have windows tell what an observer has seen, one for each collector; before the first record."""
        for lane in self._lanes:
            # A scrape has no windows.
            if isinstance(lane.pipeline, Pipeline):
                lane.pipeline.observer = make()

    def step(self, record: StepRecord | Callable[[], StepRecord]) -> None:
        """Report one step, in the order of their ends; `record.start_unix_ns` places it in its window.

        Given as a function, the record is built on the export thread: building one costs more than handing it over.
        """
        recorder = self.recorder
        if recorder is not None and isinstance(record, StepRecord):
            self._put((recorder.step(record), record))
        else:
            self._put(record)

    def add_steps(self, records: Sequence[StepRecord | Callable[[], StepRecord]], rows: Sequence[Row] | None) -> None:
        """Report several; `rows` are the same steps for the flight recorder (`recorder`), where there is one."""
        recorder = self.recorder
        items: Sequence[object] = records
        if recorder is not None and rows is not None:
            items = list(zip(recorder.append(rows), records, strict=True))
        for worker in self._workers:
            worker.put_all(items)

    def inference(self, record: InferenceRecord) -> None:
        """Report one handled request."""
        self._put(record)

    def calibration(self, peaks: Peaks, start_unix_ns: int, end_unix_ns: int) -> None:
        """Report a measurement of the device's peak. A peak from a cache is no measurement."""
        self._put(Calibration(peaks, start_unix_ns, end_unix_ns))

    def peak_ratios(self, ratios: Mapping[str, float]) -> None:
        """Report by dtype what the device was measured to reach in the run, over what it reached before."""
        self._put(PeakRatios(ratios))

    def configured(self, fingerprint: str, intent: str) -> None:
        """From here on the resource says by which hashes the run's configuration is known."""
        self._put(Configured(fingerprint, intent))

    def drift(self, event: DriftEvent) -> None:
        """Report an excursion when it is found, and again when it has recovered.

        Each is a log record at once; the span goes when it has recovered, or at the end.
        """
        self._put(event)

    def drift_scores(self, scores: Mapping[str, float]) -> None:
        """Report how much evidence for drift there is, by phase, over what an alarm needs."""
        self._put(DriftScores(scores))

    def overhead(self, seconds: float) -> None:
        """Add `seconds` that the SDK took on the step path, since the last call."""
        self._put(Overhead(seconds))

    def close(self, summary: RunSummary, *, error_type: str | None = None) -> None:
        """End the run now, without waiting; later records are ignored.

        What is left is delivered for at most `worker.LINGER_S`, and at the end of the process for `worker.EXIT_S`.
        """
        last = Close(summary, error_type, self._unix_ns())
        for worker in self._workers:
            worker.close(last)
        with guard.shield("SIGTERM"):
            sigterm.forget(self)

    def flush(self, timeout_s: float) -> bool:
        """Send all that was recorded since the last flush: whether it was delivered, in full and within `timeout_s`.

        Closes the open window, so call it at the end of a phase and not at every step. After `close` it also waits
        for the threads to end.
        """
        with guard.shield("export"):
            until_s = monotonic() + timeout_s
            # All begin at once; one that hangs takes nothing from the other but this caller's time.
            asked = [(worker, worker.ask()) for worker in self._workers]
            sent = [worker.wait(mine, max(0.0, until_s - monotonic())) for worker, mine in asked]
            before, self._dropped = self._dropped, sum(self.dropped.values())
            return all(sent) and self._dropped == before
        return False

    def stop(self, timeout_s: float) -> bool:
        """Deliver for at most `timeout_s`, then give up what is left: whether the threads have ended."""
        with guard.shield("SIGTERM"):
            sigterm.forget(self)
        with guard.shield("export"):
            until_s = monotonic() + timeout_s
            for worker in self._workers:
                if worker.alive:
                    worker.hurry(until_s)
            ended = [worker.stop(max(0.0, until_s - monotonic())) for worker in self._workers]
            return all(ended)
        return False

    def terminate(self, timeout_s: float) -> None:
        """Close the run, as far as that takes no longer than half of `timeout_s`, and deliver it in what is left."""
        until_s = monotonic() + timeout_s
        # What closes a run waits for the device, which may be what hangs.
        closing = threading.Thread(target=self._end, name="mfu-sigterm-close", daemon=True)
        closing.start()
        closing.join(timeout_s / 2)
        self.stop(max(0.0, until_s - monotonic()))

    @property
    def dropped(self) -> Mapping[str, int]:
        """Items that will never arrive, over both collectors, by reason: `queue_full`, `rejected`, `budget`, `exit`."""
        return dict(sum((Counter(lane.pipeline.dropped) for lane in self._lanes), Counter()))

    def _put(self, item: object) -> None:
        for worker in self._workers:
            worker.put(item)


def _sinks(settings: Settings, env: Mapping[str, str] | None) -> Iterator[Exports]:
    """The provider's first: the recorder is kept for it where there is one."""
    interval_s, delta = metric_interval_s(env), delta_metrics(env)
    theirs = Exports(
        of_provider("traces", settings.provider, env),
        of_provider("metrics", settings.provider, env),
        interval_s,
        delta,
        aggregates_only=True,
        logs=of_provider("logs", settings.provider, env),
    )
    ours = Exports(
        destination("traces", env), destination("metrics", env), interval_s, delta, logs=destination("logs", env)
    )
    for exports in (theirs, ours):
        if exports.traces is not None or exports.metrics is not None or exports.logs is not None:
            yield exports


def _overflowed(worker: Worker) -> Callable[[], int]:
    return lambda: worker.overflowed
