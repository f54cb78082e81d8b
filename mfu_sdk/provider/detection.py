"""Drift found by the provider: the detector of `mfu_sdk.drift` over stored windows, for runs that do not look.

A window keeps the duration of each of its steps to the microsecond, and its sums give what each step asked for, so that
the same stream of steps comes out of the store that went into the tenant's process, and the same excursions are found.
What the provider cannot see is the configuration in words: it names what its windows show to have changed.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from mfu_sdk.drift.account import Account, Asked
from mfu_sdk.drift.attribution import attribute
from mfu_sdk.drift.detector import NAME
from mfu_sdk.drift.stream import Excursion
from mfu_sdk.drift.watch import Watch
from mfu_sdk.provider.store import Row, Store
from mfu_sdk.records import DriftEvent

BATCH_RATIO: Final = 1.05
"""By which factor the mean batch, or the tokens of a step, must change to be another configuration."""
LATE_NS: Final = 3600 * 10**9
"""How long after its start a window may arrive and still be taken in its order."""
MOST_RUNS: Final = 1000
"""Runs that are followed; of more, those that were heard of last."""
KEPT_WINDOWS: Final = 256
"""Windows of a run whose shares, clocks and configuration are remembered: two hours."""
MOST_WINDOWS: Final = 20_000
"""Windows that are read at once, and with their arrays held in memory."""
MOST_STEPS: Final = 1_000_000
"""Steps after which a look ends; the next one goes on there."""
_BUCKET_NS: Final = 300 * 10**9
_HEAT: Final = ("thermal", "hardware slowdown", "power brake")


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one rank. Durations in µs, negative for an untimed step; sums over its timed and known steps.

    `utilizations_bp` are each step's MFU in basis points, −1 where it is not known.
    """

    phase: str
    start_unix_ns: int
    first_step: int
    durations_us: tuple[int, ...]
    utilizations_bp: tuple[int, ...]
    timed: int
    unknown: int
    steps: int
    model_flops: float | None
    hardware_flops: float | None = None
    peak_flops_per_s: float | None = None
    expected_mfu: float | None = None
    tokens: int | None = None
    data_s: float | None = None
    comm_s: float | None = None
    skew_s: float | None = None
    host_s: float | None = None
    batch: float | None = None
    clock: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """What of its configuration shows: fingerprint, dtype of the peak, convention."""
    throttled: tuple[str, ...] = ()


class _Seen(NamedTuple):
    """What is remembered of a window: where its time went, and its configuration."""

    phase: str
    start_unix_ns: int
    time_s: float
    comm_s: float | None
    skew_s: float | None
    host_s: float | None
    clock: float | None
    facts: Mapping[str, str]
    throttled: tuple[str, ...]

    @classmethod
    def of(cls, window: Window) -> "_Seen":
        return cls(
            window.phase, window.start_unix_ns, sum(each for each in window.durations_us if each > 0) / 1e6,
            window.comm_s, window.skew_s, window.host_s, window.clock, window.facts, window.throttled,
        )  # fmt: skip


class Following:
    """One rank of one run, window by window in the order of their starts."""

    def __init__(self, watch: Watch | None = None, reference_flops_per_s: float | None = None) -> None:
        self._watch = watch or Watch()
        self._reference_flops_per_s = reference_flops_per_s
        self._seen: deque[_Seen] = deque(maxlen=KEPT_WINDOWS)
        self.events: list[DriftEvent] = []
        """What was found so far; an excursion that has recovered says so."""
        self.last_start_unix_ns = -1

    def add(self, window: Window) -> None:
        """Enter a window; one that starts no later than its predecessor in the same phase was entered before."""
        self._seen.append(_Seen.of(window))
        self.last_start_unix_ns = window.start_unix_ns
        for found in self._excursions(window):
            if found.recovered_step is None:
                self.events.append(self._event(found))
                continue
            self.events = [
                replace(event, recovered_step=found.recovered_step, recovered_unix_ns=found.recovered_unix_ns)
                if (event.phase, event.onset_step) == (found.phase, found.onset_step)
                else event
                for event in self.events
            ]

    def baselines(self) -> list[Any]:
        """What was learnt of its levels, as plain data for `Watch.warm`; empty before there is enough."""
        return self._watch.baselines()

    def _excursions(self, window: Window) -> Iterator[Excursion]:
        counted = window.timed - window.unknown
        mean = window.model_flops / counted if window.model_flops and counted > 0 else None
        hardware = window.hardware_flops / counted if window.hardware_flops and counted > 0 else mean
        tokens = round(window.tokens / window.steps) if window.tokens and window.steps else None
        data_s = window.data_s / window.timed if window.data_s is not None and window.timed else None
        at = window.start_unix_ns
        uniform = None if mean is None else self._asked(window, mean, hardware or mean)
        for offset, (duration_us, basis_points) in enumerate(
            zip(window.durations_us, window.utilizations_bp, strict=True)
        ):
            start, at = at, at + abs(duration_us) * 1000
            if duration_us <= 0:
                continue
            asked = uniform
            if basis_points < 0 or mean is None:
                asked = None
            elif window.peak_flops_per_s:
                could = window.peak_flops_per_s * duration_us / 1e6
                # Steps that ask for the same differ by no more than what the basis points round off.
                if abs(basis_points * 1e-4 * could - mean) > 1e-4 * could:
                    scale = basis_points * 1e-4 * could / mean
                    asked = self._asked(window, mean * scale, (hardware or mean) * scale) if scale > 0 else None
            found = self._watch.add(
                window.phase, asked, window.first_step + offset, start, duration_us / 1e6, tokens, data_s, window.batch
            )
            if found is not None:
                yield found

    def _asked(self, window: Window, flops: float, hardware_flops: float) -> Asked:
        peak, expected = window.peak_flops_per_s, window.expected_mfu
        return Asked(
            round(flops),
            round(hardware_flops),
            flops / (peak * expected) if peak and expected else None,
            peak,
            self._reference_flops_per_s,
        )

    def _event(self, excursion: Excursion) -> DriftEvent:
        earlier: list[_Seen] = []
        later: list[_Seen] = []
        for window in self._seen:
            if window.phase == excursion.phase:
                (later if window.start_unix_ns >= excursion.onset_unix_ns else earlier).append(window)
        # The window in which it began is of both sides, and of neither where there are others.
        if earlier and not later:
            later = earlier[-1:]
        before, after = _with(excursion.before, earlier), _with(excursion.after, later)
        throttled = tuple(sorted({reason for window in later for reason in window.throttled}))
        diff = self._diff(excursion, earlier, later)
        why = attribute(before, after, kind=excursion.kind, phase=excursion.phase, diff=diff, throttled=throttled)
        return DriftEvent(
            kind=excursion.kind,
            phase=excursion.phase,
            measure=excursion.measure,
            change=excursion.ratio - 1.0,
            baseline=before.reference_mfu,
            current=after.reference_mfu,
            onset_step=excursion.onset_step,
            onset_unix_ns=excursion.onset_unix_ns,
            found_step=excursion.found_step,
            found_unix_ns=excursion.found_unix_ns,
            score=excursion.score,
            threshold=excursion.threshold,
            detector=NAME,
            cause=why.cause,
            evidence=why.evidence,
            parts=why.parts,
            fingerprint_diff=diff,
        )

    def _diff(self, excursion: Excursion, earlier: list[_Seen], later: list[_Seen]) -> tuple[str, ...]:
        before, now = excursion.before, excursion.now
        changed: list[str] = []
        if excursion.phase in ("train", "eval"):
            changed += _other("batch", before.batch, now.batch)
            if before.tokens and now.tokens:
                changed += _other("tokens a step", before.tokens / before.steps, now.tokens / now.steps)
        if earlier and later:
            old, new = earlier[0].facts, later[-1].facts
            changed += [
                f"{name}: {old.get(name, 'not set')} → {new.get(name, 'not set')}"
                for name in sorted({*old, *new})
                if old.get(name) != new.get(name)
            ]
        return tuple(changed)


Rank = tuple[str, str, int]
"""Tenant, run and rank."""
Found = tuple[Row, list[DriftEvent]]


class Detection:
    """Follows the runs in a store. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[tuple[str, str, int], tuple[Row, Following]] = {}
        self._until_unix_ns: int | None = None

    def look(self, since_unix_ns: int, until_unix_ns: int, most_steps: int = MOST_STEPS) -> dict[Rank, Found]:
        """What was found of each run up to `until`: its latest window's row, without arrays, and its events.

        The first look reads from `since` on; a later one only what has come in between. One that has seen `most_steps`
        steps ends, and the next one goes on there.
        """
        since = since_unix_ns if self._until_unix_ns is None else max(since_unix_ns, self._until_unix_ns - LATE_NS)
        steps = 0
        for start, end in self._parts(since, until_unix_ns):
            if steps >= most_steps:
                break
            for row in self._store.read("windows", since=start, until=end):
                steps += self._enter(row)
            self._until_unix_ns = max(end, self._until_unix_ns or 0)
        for key in list(self._runs)[:-MOST_RUNS]:
            del self._runs[key]
        return self.found

    @property
    def found(self) -> dict[Rank, Found]:
        """What earlier looks found of each run: its latest window's row, without arrays, and its events."""
        return {key: (row, following.events) for key, (row, following) in list(self._runs.items())}

    def _parts(self, since_unix_ns: int, until_unix_ns: int) -> Iterator[tuple[int, int]]:
        """[since, until) in parts of so many windows that they fit into memory."""
        start, held = since_unix_ns, 0
        for row in self._store.read("window_counts", since=since_unix_ns, until=until_unix_ns):
            bucket = row["bucket"] * _BUCKET_NS
            if held and held + row["windows"] > MOST_WINDOWS:
                yield start, bucket
                start, held = bucket, 0
            held += row["windows"]
        if start < until_unix_ns:
            yield start, until_unix_ns

    def _enter(self, row: Row) -> int:
        key = row["tenant"], row["run_id"], row["rank"]
        known = self._runs.pop(key, None)
        following = Following() if known is None else known[1]
        window = window_of(row) if row["start_unix_ns"] > following.last_start_unix_ns else None
        if window is not None:
            following.add(window)
        self._runs[key] = {**row, "durations_us": "", "utilizations_bp": ""}, following
        return 0 if window is None else len(window.durations_us)


def window_of(row: Row) -> Window | None:
    """A row of sql/read/windows.sql; None for arrays that are none, or not of one length."""
    try:
        durations = tuple(int(each) for each in json.loads(row["durations_us"]))
        utilizations = tuple(int(each) for each in json.loads(row["utilizations_bp"]))
        reasons = json.loads(row["reasons"]) if row["reasons"] else []
    except (ValueError, TypeError):
        return None
    if not durations or len(durations) != len(utilizations):
        return None
    facts = {name: row[name] for name in ("fingerprint", "peak_dtype", "convention") if row[name]}
    return Window(
        phase=row["phase"],
        start_unix_ns=row["start_unix_ns"],
        first_step=row["first_step"] or 0,
        durations_us=durations,
        utilizations_bp=utilizations,
        timed=row["timed"] or 0,
        unknown=row["unknown"] or 0,
        steps=row["steps"] or 0,
        model_flops=_known(row["model_flop"]),
        hardware_flops=_known(row["hardware_flop"]),
        peak_flops_per_s=_known(row["peak_flops_per_s"]),
        expected_mfu=_known(row["expected_mfu"]),
        tokens=row["tokens"],
        data_s=row["data_s"],
        comm_s=row["comm_s"],
        skew_s=row["skew_s"],
        host_s=row["host_s"],
        batch=_known(row["batch"]),
        clock=_known(row["clock"]),
        facts=facts,
        throttled=tuple(str(each) for each in reasons if any(word in str(each) for word in _HEAT)),
    )


def _known(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None


def _with(account: Account, windows: Iterable[_Seen]) -> Account:
    """The account with what its windows tell of communication, skew, the host and the clock, as shares of its time."""
    windows = list(windows)

    def seconds(name: str) -> float | None:
        told = [(value, window.time_s) for window in windows if (value := getattr(window, name)) is not None]
        whole = sum(time_s for _, time_s in told)
        return sum(value for value, _ in told) / whole * account.time_s if whole > 0 else None

    clocks = [(window.clock, window.time_s) for window in windows if window.clock is not None and window.time_s > 0]
    clock = sum(each * time_s for each, time_s in clocks) / sum(time_s for _, time_s in clocks) if clocks else None
    return replace(account, comm_s=seconds("comm_s"), skew_s=seconds("skew_s"), host_s=seconds("host_s"), clock=clock)


def _other(name: str, before: float | None, after: float | None) -> list[str]:
    if not before or not after or max(before / after, after / before) < BATCH_RATIO:
        return []
    return [f"{name}: {before:.4g} → {after:.4g}"]
