"""What a process left in its flight recorder, sent to a collector under the ids that the process would have used.

Windows are put together again from their steps: one that the export thread had begun keeps the step that opened it,
and so its id; steps that the thread had not come to open windows of their own, because the window before may have
arrived without them. A window of which any step is marked as arrived has arrived whole. Sent are step spans first,
then what sums are made of; only then are the steps marked, so that a replay that is cut short sends some spans twice,
which their ids tell, and loses none.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from opentelemetry.sdk.resources import Resource

from mfu_sdk import semconv
from mfu_sdk.errors import ConfigurationError, DeliveryError
from mfu_sdk.export import flight
from mfu_sdk.export.delivery import CHUNK_SPANS, refused
from mfu_sdk.export.destination import Destination
from mfu_sdk.export.encode import Envelope, Span, encode
from mfu_sdk.export.flight import Entry, Flight
from mfu_sdk.export.flight_file import FlightFile
from mfu_sdk.export.identity import window_slot
from mfu_sdk.export.otlp import Sender
from mfu_sdk.export.otlp_grpc import GrpcSender
from mfu_sdk.export.outbox import REQUEST_BYTES, REQUEST_SPANS
from mfu_sdk.export.route import sender
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import Denominator, Window, Windows, sums
from mfu_sdk.records import RunIdentity, RunSummary, StepRecord

LAST_STEPS: Final = 64
"""Of a run that samples its step spans, so many of the last steps get one each: they are what a killed process is
asked for. They have no weight in sums, which the windows stand for."""

TRIES: Final = 4
"""How often a request is tried that the collector cannot take now."""
LONGEST_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one file: windows, steps in them, and torn slots that were skipped.

    `run`: the run's own span was missing and went along. `refused` spans are those that the collector took the request
    of and did not want. `live`: a process has the file.
    """

    path: Path
    run_id: str = ""
    windows: int = 0
    steps: int = 0
    torn: int = 0
    refused: int = 0
    live: bool = False
    run: bool = False

    def __str__(self) -> str:
        if self.live:
            return f"{self.path}: left alone, a process has it open"
        torn = f"; {self.torn} torn records skipped" if self.torn else ""
        if not self.steps and not self.run:
            return f"{self.path}: nothing was missing; removed{torn}"
        refused = f"; the collector refused {self.refused} spans for good" if self.refused else ""
        return (
            f"{self.path}: delivered {self.steps} steps in {self.windows} windows{' and the end' * self.run} of run "
            f"{self.run_id}; removed{refused}{torn}"
        )


def replay(path: Path, destination: Destination, *, sleep: Callable[[float], None] = time.sleep) -> Replayed:
    """Send what `path` holds and has not arrived, mark it, and delete the file.

    Raises `ConfigurationError` for a file that cannot be read or is no recorder's, `DeliveryError` where the collector
    does not take it: the file is kept then.
    """
    try:
        file = FlightFile.take(path)
        if file is None:
            return Replayed(path, live=True)
        data = file.read(flight.FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read and written ({error.strerror}); give a recorder's file of your own"
        ) from error
    try:
        found = flight.read(data, str(path))
        missing = Missing.of(found)
        requests = _requests(missing.envelope(), missing.spans())
        with contextlib.closing(sender("traces", destination, time.time)) as to:
            lost = sum(_deliver(body, spans, to, destination.url, sleep) for body, spans in requests)
        for entry in missing.entries:
            file.write(flight.arrived_at(entry.sequence), flight.pack_arrived(entry.sequence))
        file.remove()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; its steps were delivered, delete it") from error
    finally:
        file.close()
    run_id = str(found.identity.get(semconv.RUN_ID, ""))
    ended = found.end is not None and not found.run_arrived
    return Replayed(path, run_id, len(missing.windows), len(missing.entries), found.torn, lost, run=ended)


@dataclass(frozen=True, slots=True)
class Missing:
    """What has not arrived of a flight: its steps, the windows that they make, and whose they are."""

    flight: Flight
    entries: tuple[Entry, ...]
    windows: tuple[Window, ...]
    _of: dict[int, Window] = field(repr=False)

    @classmethod
    def of(cls, found: Flight) -> "Missing":
        """Put the windows together."""
        groups: dict[tuple[int, Denominator, int], list[Entry]] = {}
        alone: list[Entry] = []
        for entry in found.entries:
            if entry.first is None:
                alone.append(entry)
            else:
                groups.setdefault((*_place(entry.step), entry.first), []).append(entry)
        of: dict[int, Window] = {}
        for (slot, denominator, first), group in groups.items():
            if not any(entry.arrived for entry in group):
                steps = [entry.step for entry in group]
                window = Window(slot, denominator, steps, opened_by=replace(steps[0], index=first))
                of |= {entry.sequence: window for entry in group}
        windows = Windows()
        for entry in alone:
            of[entry.sequence], _ = windows.add(entry.step)
        entries = tuple(entry for entry in found.entries if entry.sequence in of)
        distinct = {id(of[entry.sequence]): of[entry.sequence] for entry in entries}
        return cls(found, entries, tuple(distinct.values()), of)

    def envelope(self) -> Envelope:
        """What the process said of itself, around its spans."""
        return Envelope(Resource(dict(self.flight.identity)))

    def spans(self) -> Iterator[Span]:
        """Step spans, then windows, then the run's if it had come to its end."""
        made = Spans(_identity(self.flight))
        for number, entry in enumerate(self.entries):
            kept = self._kept(entry, last=len(self.entries) - number <= LAST_STEPS)
            if kept is not None:
                yield made.step(entry.step, self._of[entry.sequence], kept)
        if self.flight.mode != "off":
            for window in self.windows:
                yield made.window(window, sums(window.steps))
        end = self.flight.end
        if end is not None and not self.flight.run_arrived:
            error_type = flight.OTHER_ERROR if end.failed else None
            yield made.run(_summary(self.flight, end), _totals(end), end.end_unix_ns, error_type)

    def _kept(self, entry: Entry, *, last: bool) -> Kept | None:
        """As the process decided; of what it had not come to, and of the last ones, as the mode has it."""
        if self.flight.mode in ("windows", "off"):
            return None
        if self.flight.mode == "all":
            return Kept("all", 1.0)
        return entry.kept or (Kept("recorder", None) if last else None)


def _place(step: StepRecord) -> tuple[int, Denominator]:
    denominator = Denominator(step.phase, step.convention, step.peak_dtype, step.peak_source, step.peak_flops_per_s)
    return window_slot(step.start_unix_ns), denominator


def _identity(found: Flight) -> RunIdentity:
    who = found.identity
    return RunIdentity(
        run_id=str(who.get(semconv.RUN_ID, "")),
        attempt=int(who.get(semconv.RUN_ATTEMPT, 0)),
        workload=str(who.get(semconv.WORKLOAD_NAME, "")),
        workload_family=None,
        rank=int(who.get(semconv.DIST_RANK, 0)),
        local_rank=None,
        world_size=int(who.get(semconv.DIST_WORLD_SIZE, 1)),
        device_name=str(who.get(semconv.HW_NAME, "")),
        device_vendor=None,
        device_id=None,
        start_unix_ns=found.start_unix_ns,
    )


def _totals(end: flight.End) -> Totals:
    return Totals(
        time_s=end.time_s,
        tokens=end.tokens,
        model_flops=None if end.model_flops is None else int(end.model_flops),
        hardware_flops=None if end.hardware_flops is None else int(end.hardware_flops),
        available_flops=end.available_flops,
    )


def _summary(found: Flight, end: flight.End) -> RunSummary:
    dtype, source = found.end_peak
    return RunSummary(
        name="",
        steps=end.steps,
        timed_steps=0,
        unknown_steps=0,
        mfu=None,
        hfu=None,
        expected_mfu=end.expected_mfu,
        waterfall={},
        tokens=end.tokens,
        tokens_per_s=None,
        overhead_s=end.overhead_s or 0.0,
        uncounted=(),
        coverage=end.coverage,
        model_flops=None,
        duration_s=0.0,
        peak_flops_per_s=end.peak_flops_per_s,
        peak_dtype=dtype,
        peak_source=source,
        device="",
        convention=end.convention,
        peak_memory_bytes_per_s=end.memory_bytes_per_s,
        calibration_id=end.calibration_id,
    )


def _requests(envelope: Envelope, spans: Iterable[Span]) -> Iterator[tuple[bytes, int]]:
    """Bodies of requests, no larger than a collector is sent by a living process, and the spans in each."""
    bodies: list[bytes] = []
    count = size = 0
    left = iter(spans)
    while chunk := list(itertools.islice(left, CHUNK_SPANS)):
        body = envelope.request([encode(span) for span in chunk])
        if bodies and (count + len(chunk) > REQUEST_SPANS or size + len(body) > REQUEST_BYTES):
            yield b"".join(bodies), count
            bodies, count, size = [], 0, 0
        bodies.append(body)
        count, size = count + len(chunk), size + len(body)
    if bodies:
        yield b"".join(bodies), count


def _deliver(body: bytes, spans: int, to: Sender | GrpcSender, url: str, sleep: Callable[[float], None]) -> int:
    """Send one request: how many of its spans were refused though it was taken."""
    detail = ""
    for attempt in range(TRIES):
        outcome = to.send(to.compress(body))
        if outcome.kind == "delivered":
            return min(refused("spans", outcome.answer), spans)
        detail = outcome.detail
        if outcome.kind == "rejected":
            raise DeliveryError(f"{url} refuses the spans ({detail}); check the URL and its token; the files are kept")
        if attempt < TRIES - 1:
            wait_s = 2.0**attempt if outcome.retry_after_s is None else outcome.retry_after_s
            sleep(min(wait_s, LONGEST_WAIT_S))
    raise DeliveryError(f"{url} did not take the spans in {TRIES} tries ({detail}); the files are kept, try later")
