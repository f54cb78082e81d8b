"""The flight recorder: the last steps of a run in a file that outlives the process, whatever ends it.

A step is written by the thread that ended it, before it is handed to the export thread: what SIGKILL, the
out-of-memory killer or `os._exit` meets is then complete to the last step, but for those that the ledger settles
together (`run.ledger.SETTLE_EVERY_NS`). The export thread adds which window a step
joined and that the window has arrived, so that `mfu replay` sends what is missing under the ids that the process would
have used. A file is deleted by the run that has delivered everything, and is of no use after a loss of power: nothing
waits for the disk.
"""

import atexit
import os
import re
import sys
import weakref
from collections.abc import Mapping, Sequence
from itertools import count
from zlib import crc32

from mfu_sdk import guard
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export import flight, shelf
from mfu_sdk.export.flight import CAPACITY, RING_AT, SLOT_BYTES, pack_body, pack_step, put_checked
from mfu_sdk.export.flight_file import FlightFile
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import Window
from mfu_sdk.records import RunIdentity, RunSummary, StepRecord
from mfu_sdk.settings import Settings

_alive: "weakref.WeakSet[Recorder]" = weakref.WeakSet()
_hooked = False


class Recorder:
    """One run's recorder, made by `open`. `append` may be called from any thread; the rest is the export thread's.

    Nothing here raises but under MFU_GUARD=raise: at the first failure it is off, with one warning.
    """

    def __init__(self, file: FlightFile) -> None:
        self.path = file.path
        self._file: FlightFile | None = file
        self._sequences = count(1)
        self._last = 0
        self._names: dict[tuple[str | None, str | None], int] = {}
        # The steps of open windows and of those on their way, by number; and which of the ring's have arrived.
        self._joined: dict[int, tuple[Window, list[int]]] = {}
        self._arrived = [0] * flight.CAPACITY
        self._run_arrived = True
        _hook_process()
        _alive.add(self)

    @classmethod
    def open(cls, identity: RunIdentity, resource: Mapping[str, object], settings: Settings) -> "Recorder | None":
        """A recorder for `identity`, None where it is turned off or cannot be, which one warning says.

        `resource` are the names and ids that the run's spans carry; all of it is kept. Under `spans="off"` there are
        no windows to deliver, so nothing is recorded.
        """
        if settings.recorder == "off" or settings.spans == "off":
            return None
        try:
            directory = settings.resolved_recorder_dir()
            shelf.prepare(directory)
            header = flight.pack_header(resource, identity.start_unix_ns, settings.spans)
            file = FlightFile.create(directory / _file_name(identity), flight.FILE_BYTES)
            file.write(0, header)
        # RuntimeError: there is no home directory to be found.
        except (OSError, RuntimeError, ConfigurationError) as error:
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            guard.warn_once(
                "recorder",
                f"off: {why}; a killed process loses its last steps. MFU_RECORDER=off says that this is fine",
            )
            return None
        # One rank a host speaks and tidies for all of it.
        if not identity.local_rank:
            shelf.offer(directory, file.path)
        return cls(file)

    def name(self, dtype: str | None, source: str | None) -> int | None:
        """The number of a denominator's name, entered at its first use; None once the table is full."""
        found = self._names.get((dtype, source))
        if found is None and len(self._names) < flight.MOST_NAMES:
            found = self._names[dtype, source] = len(self._names)
            self._write(flight.NAMES_AT + found * flight.NAME_BYTES, flight.pack_name(dtype, source))
        return found

    def append(self, rows: Sequence[flight.Row]) -> list[int]:
        """Record steps: the number of each, 0 where nothing is recorded any more."""
        file = self._file
        if file is None:
            return [0] * len(rows)
        numbers: list[int] = []
        # No shield: on the path of every step it would cost as much as the record.
        try:
            mapped = file.mapped
            for row in rows:
                sequence = next(self._sequences)
                if mapped is None:
                    file.write(*pack_step(sequence, row))
                else:
                    # The same without two calls and a copy.
                    body = pack_body(sequence, *row)
                    put_checked(mapped, RING_AT + (sequence - 1) % CAPACITY * SLOT_BYTES, crc32(body), body)
                numbers.append(sequence)
                self._last = sequence
        except Exception as error:  # noqa: BLE001 - whatever it is, the user's step goes on
            self._fail(error)
            numbers += [0] * (len(rows) - len(numbers))
        return numbers

    def step(self, record: StepRecord) -> int:
        """Record a step that is a record already."""
        if self._file is None:
            return 0
        return self.append((flight.row_of(record, self.name(record.peak_dtype, record.peak_source)),))[0]

    def joined(self, sequence: int, window: Window, kept: Kept | None) -> None:
        """The step is in this window, and its span is kept for this reason."""
        if self._file is None or not sequence:
            return
        self._joined.setdefault(id(window), (window, []))[1].append(sequence)
        self._write(flight.joined_at(sequence), flight.pack_joined(sequence, window.first.index, kept))

    def closed(self, window: Window) -> Sequence[int]:
        """The window takes no more steps: the numbers of those that it has."""
        return self._joined.pop(id(window), (window, []))[1]

    def arrived(self, sequences: Sequence[int]) -> None:
        """The collector has these steps' window."""
        for sequence in sequences:
            self._arrived[(sequence - 1) % flight.CAPACITY] = sequence
            self._write(flight.arrived_at(sequence), flight.pack_arrived(sequence))

    def ended(self, summary: RunSummary, totals: Totals, end_unix_ns: int, *, failed: bool) -> None:
        """The run is over, and this is what its span says."""
        self._run_arrived = False
        end = flight.End(
            end_unix_ns,
            summary.steps,
            summary.overhead_s,
            totals.model_flops,
            totals.hardware_flops,
            totals.available_flops,
            totals.time_s,
            summary.expected_mfu,
            summary.coverage,
            summary.peak_flops_per_s,
            summary.peak_memory_bytes_per_s,
            totals.tokens,
            summary.convention,
            failed,
            self.name(summary.peak_dtype, summary.peak_source),
            summary.calibration_id,
        )
        self._write(flight.END_AT, end.pack())

    def run_arrived(self) -> None:
        """The collector has the run's span."""
        self._run_arrived = True
        self._write(flight.RUN_ARRIVED_AT, b"\1")

    def retire(self) -> None:
        """Nothing more will arrive: the file is deleted if nothing is missing, and else left for `mfu replay`."""
        file = self._file
        self._file = None
        if file is None:
            return
        missing = self.missing
        if missing or not self._run_arrived:
            what = f"{missing} steps" if missing else "the run's span"
            guard.warn_once("recorder", f"{what} did not arrive; `mfu replay {file.path}` delivers them (--otlp URL)")
        else:
            file.remove()

    @property
    def missing(self) -> int:
        """Steps of the ring whose windows have not arrived."""
        first = max(1, self._last - flight.CAPACITY + 1)
        return sum(self._arrived[(n - 1) % flight.CAPACITY] != n for n in range(first, self._last + 1))

    def forget_nothing(self) -> None:
        """Delete the file if there is nothing in it."""
        if self._file is not None and not self._last and self._run_arrived:
            self.retire()

    def disown(self) -> None:
        """Become inert: this is a forked child, and the file is the parent's, with its lock."""
        file, self._file = self._file, None
        if file is not None:
            # Only the thread that forked is here, and it is not writing.
            file.close()

    def _write(self, at: int, data: bytes) -> None:
        file = self._file
        if file is not None:
            try:
                file.write(at, data)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._file = None
        if not guard.contained("recorder", error):
            raise error


def _file_name(identity: RunIdentity) -> str:
    """Run, attempt, rank and process, for a person; and something that no other file has."""
    run = re.sub(r"[^A-Za-z0-9_-]+", "_", identity.run_id)[:64]
    return f"{run}-a{identity.attempt}-r{identity.rank}-p{os.getpid()}-{os.urandom(3).hex()}{shelf.SUFFIX}"


def _hook_process() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_at_exit)
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=_in_child)


def _at_exit() -> None:
    # A run that recorded nothing has no export thread to put its file away.
    for recorder in tuple(_alive):
        recorder.forget_nothing()


def _in_child() -> None:
    for recorder in tuple(_alive):
        recorder.disown()
    _alive.clear()
