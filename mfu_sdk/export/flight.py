"""The layout of a flight recorder's file: numbers and ids in a header, a ring of steps, and marks of what arrived.

    0        magic, version, sizes, the run's start, mode; length and checksum of the identity, the identity as JSON
    8192     the denominators' names: 64 entries of 256 bytes
    24576    the run's end, once it is known, and whether its span has arrived
    28672    the ring: `CAPACITY` slots of `SLOT_BYTES`

A slot holds one step under a checksum, then, in parts of their own with the step's number, which window it joined and
that the window has arrived: those are written later and by another thread. A part whose checksum or number does not
fit is one that the end of the process tore, or that belongs to the step before in this slot. Everything is little
endian. What is not known is NaN, or -1 where it is a whole number. Pure: no file, no clock.
"""

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export.sampling import Kept, Reason
from mfu_sdk.export.windows import ratio
from mfu_sdk.records import PHASES, Convention, CountSource, StepRecord
from mfu_sdk.settings import Spans

MAGIC: Final = b"MFUFLGHT"
VERSION: Final = 3
"""Raised with every change of the layout: a reader refuses every other."""

CAPACITY: Final = 8192
"""Steps in the ring: as many as the export thread's queue may hold."""
SLOT_BYTES: Final = 272
NAMES_AT: Final = 8192
NAME_BYTES: Final = 256
MOST_NAMES: Final = 64
END_AT: Final = 24576
RUN_ARRIVED_AT: Final = END_AT + 2048
RING_AT: Final = 28672
FILE_BYTES: Final = RING_AT + CAPACITY * SLOT_BYTES

_HEADER = struct.Struct("<8sHHIIIqBII")
_STEP = struct.Struct("<QqqddqqddBB64s100s")
_REQUESTS = struct.Struct("<iiddddddd")
_TERMS = struct.Struct("<ddddddddddddBBBB")
_JOINED = struct.Struct("<QqBB")
_END = struct.Struct("<qqdddddddddqBBB40s")
_CHECK = struct.Struct("<I")
_ARRIVED = struct.Struct("<Q")
_CHECKED = struct.Struct(f"<I{_STEP.size}s")
pack_body: Final = _STEP.pack
"""The first part of a slot without its checksum: a step's number, which begins at 1, and its row."""
put_checked: Final = _CHECKED.pack_into
"""Put that part into a mapped file: where, the checksum (`zlib.crc32`), the body."""
_JOINED_AT: Final = 242
_ARRIVED_AT: Final = 264
_IDENTITY_AT: Final = 64

_SOURCES: Final[tuple[CountSource | None, ...]] = (None, "measured", "cached", "predicted", "sampled")
_CONVENTIONS: Final[tuple[Convention, ...]] = ("exact", "full")
_MODES: Final[tuple[Spans, ...]] = ("auto", "all", "windows", "off")
_REASONS: Final[tuple[Reason | None, ...]] = (None, "all", "periodic", "first", "last", "error", "recorder")
_COUNTED, _PROFILED, _FAILED = 1, 2, 4
_NO_NAME: Final = 255
_MOST_REQUESTS: Final = 2**31 - 1
OTHER_ERROR: Final = "_OTHER"
"""What `error.type` is where the class is not known (https://opentelemetry.io/docs/specs/semconv/attributes-registry/error/):
names of a user's classes are not kept."""


def _real(value: float | None) -> float:
    return math.nan if value is None else value


def _whole(value: int | None) -> int:
    return -1 if value is None else value


class Terms(NamedTuple):
    """What steps that ask for the same work against the same peak have in common.

    FLOPs and FLOP/s as doubles, which is what they are on the wire; `by_dtype_s` is Σ FLOPs_d / peak_d in seconds;
    `name` is the number of the denominator's name (`pack_name`).
    """

    model_flops: float | None
    hardware_flops: float | None
    attention_flops_exact: float | None
    attention_flops_full: float | None
    peak_flops_per_s: float | None
    achievable_flops_per_s: float | None
    by_dtype_s: float | None
    expected_mfu: float | None
    coverage: float | None
    arithmetic_intensity: float | None
    expected_low_mfu: float | None
    expected_high_mfu: float | None
    count_source: CountSource | None
    convention: Convention
    name: int | None

    def pack(self) -> bytes:
        """As it lies in a slot: packed once for all the steps that share it."""
        return _TERMS.pack(
            *map(_real, self[:12]),
            _SOURCES.index(self.count_source),
            _CONVENTIONS.index(self.convention),
            _NO_NAME if self.name is None else self.name,
            0,
        )


class Row(NamedTuple):
    """One step on its way into a slot: `flags` by `flags_of`, `requests` and `terms` packed, -1 and NaN for unknown."""

    number: int
    start_unix_ns: int
    duration_s: float
    data_wait_s: float
    tokens: int
    samples: int
    batch_running: float
    comm_s: float
    phase: int
    flags: int
    requests: bytes
    terms: bytes


def pack_requests(
    requests: int | None,
    failed: int | None,
    requests_s: float | None,
    running: float | None,
    feasible: float | None,
    waiting: float | None,
    kv_cache_free_ratio: float | None,
    latency_target_s: float | None,
    expected_feasible_mfu: float | None,
) -> bytes:
    """What only steps of inference have."""
    return _REQUESTS.pack(
        # As many as fit: a slot has no room for more.
        min(_whole(requests), _MOST_REQUESTS),
        min(_whole(failed), _MOST_REQUESTS),
        *map(
            _real,
            (
                requests_s,
                running,
                feasible,
                waiting,
                kv_cache_free_ratio,
                latency_target_s,
                expected_feasible_mfu,
            ),
        ),
    )


NO_REQUESTS: Final = pack_requests(*[None] * 9)


def flags_of(*, counted: bool, profiled: bool, failed: bool) -> int:
    """What keeps a step out of sums."""
    return counted * _COUNTED | profiled * _PROFILED | failed * _FAILED


def row_of(step: StepRecord, name: int | None) -> Row:
    """`step` as a row; `name` is the number of its denominator's name."""
    achievable = ratio(step.model_flops, _product(step.achievable_mfu, step.duration_s))
    terms = Terms(
        step.model_flops,
        step.hardware_flops,
        step.attention_flops_exact,
        step.attention_flops_full,
        step.peak_flops_per_s,
        achievable,
        _product(step.mfu_by_dtype, step.duration_s),
        step.expected_mfu,
        step.coverage,
        step.arithmetic_intensity,
        step.expected_low_mfu,
        step.expected_high_mfu,
        step.count_source,
        step.convention,
        name,
    )
    return Row(
        step.index,
        step.start_unix_ns,
        step.duration_s,
        _real(step.data_wait_s),
        _whole(step.tokens),
        _whole(step.samples),
        _real(step.batch_running),
        _real(step.comm_s),
        PHASES.index(step.phase),
        flags_of(
            counted=step.count_source == "measured", profiled=step.profiled, failed=step.error_type is not None
        ),
        pack_requests(
            step.requests, step.requests_failed, step.requests_s, step.requests_running, step.batch_feasible,
            step.queue_waiting, step.kv_cache_free_ratio, step.latency_target_s, step.expected_feasible_mfu,
        ),
        terms.pack(),
    )  # fmt: skip


def slot_at(sequence: int) -> int:
    """Where the step with this number lies in the file."""
    return RING_AT + (sequence - 1) % CAPACITY * SLOT_BYTES


def pack_step(sequence: int, row: Row) -> tuple[int, bytes]:
    """The first part of a slot, and where it goes; numbers begin at 1, so that an empty slot has none."""
    body = pack_body(sequence, *row)
    return slot_at(sequence), _CHECKED.pack(zlib.crc32(body), body)


def pack_joined(sequence: int, first: int, kept: Kept | None) -> bytes:
    """The second part: the index of the step that opened the window, and why the step's span was kept."""
    exponent = 0 if kept is None or kept.ratio is None else 1 + round(-math.log2(kept.ratio))
    body = _JOINED.pack(sequence, first, _REASONS.index(None if kept is None else kept.reason), exponent)
    return _CHECK.pack(zlib.crc32(body)) + body


def joined_at(sequence: int) -> int:
    """Where that part lies in the file."""
    return slot_at(sequence) + _JOINED_AT


def pack_arrived(sequence: int) -> bytes:
    """The third part: the step's window has arrived."""
    return _ARRIVED.pack(sequence)


def arrived_at(sequence: int) -> int:
    """Where that part lies in the file."""
    return slot_at(sequence) + _ARRIVED_AT


def pack_name(dtype: str | None, source: str | None) -> bytes:
    """A denominator's dtype and source, cut to what an entry holds."""
    text = json.dumps([dtype, source and source[:160]]).encode()[: NAME_BYTES - 8]
    return struct.pack("<II", len(text), zlib.crc32(text)) + text


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: what its span says besides ids. FLOPs as doubles, None for unknown."""

    end_unix_ns: int
    steps: int
    overhead_s: float | None
    model_flops: float | None
    hardware_flops: float | None
    available_flops: float | None
    time_s: float | None
    expected_mfu: float | None
    coverage: float | None
    peak_flops_per_s: float | None
    memory_bytes_per_s: float | None
    tokens: int | None
    convention: Convention
    failed: bool
    name: int | None
    calibration_id: str | None

    def pack(self) -> bytes:
        """As it lies at `END_AT`."""
        body = _END.pack(
            self.end_unix_ns,
            self.steps,
            *map(
                _real,
                (
                    self.overhead_s, self.model_flops, self.hardware_flops, self.available_flops, self.time_s,
                    self.expected_mfu, self.coverage, self.peak_flops_per_s, self.memory_bytes_per_s,
                ),
            ),
            _whole(self.tokens),
            _CONVENTIONS.index(self.convention),
            self.failed,
            _NO_NAME if self.name is None else self.name,
            (self.calibration_id or "").encode()[:40],
        )  # fmt: skip
        return _CHECK.pack(zlib.crc32(body)) + body


def pack_header(identity: Mapping[str, object], start_unix_ns: int, mode: Spans) -> bytes:
    """Everything before the names. Raises `ConfigurationError` for an identity that does not fit."""
    text = json.dumps(identity, separators=(",", ":")).encode()
    if len(text) > NAMES_AT - _IDENTITY_AT:
        raise ConfigurationError(
            f"the run's identity takes {len(text)} bytes: at most {NAMES_AT - _IDENTITY_AT} fit; shorten its names"
        )
    head = _HEADER.pack(
        MAGIC, VERSION, SLOT_BYTES, CAPACITY, RING_AT, 0, start_unix_ns, _MODES.index(mode), len(text), zlib.crc32(text)
    )
    return head.ljust(_IDENTITY_AT, b"\0") + text


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One step that was found: its number, its record, and, once the export thread had it, its window and span.

    `first` is the index of the step that opened the window, None where no window had it yet.
    """

    sequence: int
    step: StepRecord
    first: int | None
    kept: Kept | None
    arrived: bool


@dataclass(frozen=True, slots=True)
class Flight:
    """What a file holds: the steps in their order, how many slots are torn, and the run's end if it had one."""

    identity: Mapping[str, str | int]
    start_unix_ns: int
    mode: Spans
    entries: tuple[Entry, ...]
    torn: int
    end: End | None
    end_peak: tuple[str | None, str | None]
    run_arrived: bool


def read(data: bytes, name: str) -> Flight:
    """Take a file apart; `name` is the file's, for errors.

    Raises `ConfigurationError` for what is no recorder's file, for another version and for a torn header.
    """
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise ConfigurationError(f"{name}: is no flight recorder's file; give one that ends in .mfurec")
    _, version, slot, capacity, ring, _, start_unix_ns, mode, length, check = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ConfigurationError(
            f"{name}: has version {version} of the layout and this SDK reads {VERSION}; "
            "replay it with the version that wrote it"
        )
    text = data[_IDENTITY_AT : _IDENTITY_AT + length]
    fits = (slot, capacity, ring) == (SLOT_BYTES, CAPACITY, RING_AT) and len(data) == FILE_BYTES and mode < len(_MODES)
    identity = json.loads(text) if fits and zlib.crc32(text) == check else None
    if not isinstance(identity, dict):
        raise ConfigurationError(f"{name}: its header is torn, so nothing tells whose steps it holds; delete it")
    names = [_name(data, NAMES_AT + number * NAME_BYTES) for number in range(MOST_NAMES)]
    entries, torn = [], 0
    for at in range(RING_AT, FILE_BYTES, SLOT_BYTES):
        found = _entry(data, at, names)
        if found is not None:
            entries.append(found)
        elif data[at : at + _JOINED_AT].strip(b"\0"):
            torn += 1
    end, end_peak = _end(data, names)
    return Flight(
        identity,
        start_unix_ns,
        _MODES[mode],
        tuple(sorted(entries, key=lambda entry: entry.sequence)),
        torn,
        end,
        end_peak,
        data[RUN_ARRIVED_AT] == 1,
    )


_Name = tuple[str | None, str | None]


def _name(data: bytes, at: int) -> _Name:
    length, check = struct.unpack_from("<II", data, at)
    text = data[at + 8 : at + min(8 + length, NAME_BYTES)]
    if not length or zlib.crc32(text) != check:
        return None, None
    try:
        dtype, source = json.loads(text)
    except ValueError:
        # It was longer than an entry and is cut.
        return None, None
    return dtype, source


def _entry(data: bytes, at: int, names: list[_Name]) -> Entry | None:
    body = data[at + _CHECK.size : at + _CHECK.size + _STEP.size]
    if _CHECK.unpack_from(data, at)[0] != zlib.crc32(body):
        return None
    sequence, *fields = _STEP.unpack(body)
    step = step_of(Row(*fields), names)
    if not sequence or slot_at(sequence) != at or step is None:
        return None
    first, kept = None, None
    joined = data[at + _JOINED_AT + _CHECK.size : at + _JOINED_AT + _CHECK.size + _JOINED.size]
    whose, opened, reason, exponent = _JOINED.unpack(joined)
    if whose == sequence and _CHECK.unpack_from(data, at + _JOINED_AT)[0] == zlib.crc32(joined):
        first = opened
        why = _REASONS[reason] if reason < len(_REASONS) else None
        kept = None if why is None else Kept(why, None if exponent == 0 else 2.0 ** (1 - exponent))
    return Entry(sequence, step, first, kept, _ARRIVED.unpack_from(data, at + _ARRIVED_AT)[0] == sequence)


def step_of(row: Row, names: Sequence[_Name]) -> StepRecord | None:
    """The record that `row` was made of, None where that cannot be; `names` are the denominators'."""
    *numbers, source, convention, name, _ = _TERMS.unpack(row.terms)
    (
        model, hardware, exact, full, peak, achievable, by_dtype_s, expected, coverage, intensity, expected_low,
        expected_high,
    ) = map(_known, numbers)  # fmt: skip
    requests, failed, requests_s, running, feasible, waiting, free, latency_s, fitting = _REQUESTS.unpack(row.requests)
    if row.phase >= len(PHASES) or source >= len(_SOURCES) or convention >= len(_CONVENTIONS):
        return None
    duration_s = row.duration_s
    available = _product(peak, duration_s)
    dtype, origin = names[name] if name < len(names) else (None, None)
    return StepRecord(
        index=row.number,
        phase=PHASES[row.phase],
        duration_s=duration_s,
        model_flops=_flops(model),
        hardware_flops=_flops(hardware),
        peak_flops_per_s=peak,
        peak_source=origin,
        mfu=ratio(model, available),
        hfu=ratio(hardware, available),
        mfu_by_dtype=ratio(by_dtype_s, duration_s),
        expected_mfu=expected,
        achievable_mfu=ratio(model, _product(achievable, duration_s)),
        count_source="measured" if row.flags & _COUNTED else _SOURCES[source],
        coverage=coverage,
        tokens=_told(row.tokens),
        data_wait_s=_known(row.data_wait_s),
        comm_s=_known(row.comm_s),
        device_s=None,
        convention=_CONVENTIONS[convention],
        start_unix_ns=row.start_unix_ns,
        peak_dtype=dtype,
        samples=_told(row.samples),
        attention_flops_exact=_flops(exact),
        attention_flops_full=_flops(full),
        batch_running=_known(row.batch_running),
        arithmetic_intensity=intensity,
        requests=_told(requests),
        requests_failed=_told(failed),
        requests_s=_known(requests_s),
        error_type=OTHER_ERROR if row.flags & _FAILED else None,
        profiled=bool(row.flags & _PROFILED),
        requests_running=_known(running),
        batch_feasible=_known(feasible),
        queue_waiting=_known(waiting),
        kv_cache_free_ratio=_known(free),
        latency_target_s=_known(latency_s),
        expected_feasible_mfu=_known(fitting),
        expected_low_mfu=expected_low,
        expected_high_mfu=expected_high,
    )


def _end(data: bytes, names: list[_Name]) -> tuple[End | None, _Name]:
    body = data[END_AT + _CHECK.size : END_AT + _CHECK.size + _END.size]
    if _CHECK.unpack_from(data, END_AT)[0] != zlib.crc32(body):
        return None, (None, None)
    end_unix_ns, steps, *reals, tokens, convention, failed, name, calibration = _END.unpack(body)
    overhead_s, model, hardware, available, time_s, expected, coverage, peak, memory = map(_known, reals)
    found = End(
        end_unix_ns=end_unix_ns,
        steps=steps,
        overhead_s=overhead_s,
        model_flops=model,
        hardware_flops=hardware,
        available_flops=available,
        time_s=time_s,
        expected_mfu=expected,
        coverage=coverage,
        peak_flops_per_s=peak,
        memory_bytes_per_s=memory,
        tokens=_told(tokens),
        convention=_CONVENTIONS[convention % len(_CONVENTIONS)],
        failed=bool(failed),
        name=None if name >= MOST_NAMES else name,
        calibration_id=calibration.rstrip(b"\0").decode("utf-8", "replace") or None,
    )
    return found, names[name] if name < MOST_NAMES else (None, None)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _told(value: int) -> int | None:
    return None if value < 0 else value


def _flops(value: float | None) -> int | None:
    return None if value is None else int(value)


def _product(left: float | None, right: float) -> float | None:
    return None if left is None else left * right
