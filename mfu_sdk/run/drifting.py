"""A run's watch for drift: timed steps into the pure detector, what it finds into events with their causes.

On the path of a step it costs a look-up and an append. Each sixteenth step closes a block and pays for its median and
its bets, some microseconds. Nothing needs a thread of its own, so that `on_drift` is called where `on_step` is.

What changed near an onset is known from counted steps, which show the operators that ran, and from torch's switches.
Where a process is on its own, an alarm asks for the next step to be counted; its event waits for that, a block at most.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from mfu_sdk.drift.account import Account, Asked
from mfu_sdk.drift.attribution import attribute
from mfu_sdk.drift.detector import NAME
from mfu_sdk.drift.fingerprint import Fact, Fingerprint
from mfu_sdk.drift.stream import Excursion
from mfu_sdk.drift.watch import Watch
from mfu_sdk.guard import contained, log, shield
from mfu_sdk.records import Count, DriftEvent, Peaks
from mfu_sdk.run import configuration

if TYPE_CHECKING:
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.run.drift_files import DriftFiles
    from mfu_sdk.run.held import Held
    from mfu_sdk.run.kinds import Kind
    from mfu_sdk.run.work import Work

SHORT_S: Final = 0.002
"""Of steps shorter than this, each is looked at with the probability that leaves 500 a second: what it costs to look,
some eight microseconds with its share of a block, must not weigh on short steps. Chance alone chooses, so that no
rhythm of the loop's can meet one of ours."""
MOST_EVENTS: Final = 64
"""Events that a summary keeps, the latest ones."""
PATIENCE_STEPS: Final = 16
"""Steps that an event waits for one of them to be counted."""
PATIENCE_BETWEEN_RANKS: Final = 128
"""Steps that it waits for the exchange of one of them to be timed, which torch does in every hundredth."""
ONSET_BLOCKS: Final = 4
"""Blocks by which an onset may be wrong."""
TELL_EVERY: Final = 64
"""Steps between two reports of the evidence that there is."""
BATCH_RATIO: Final = 1.05
"""By which factor the mean batch, or the tokens of a step, must change to be another configuration."""
_SLOWED: Final = frozenset(
    {"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "power brake"}
)


UNSEEN_STEPS: Final = 8
"""Steps after which the configuration is taken down where none of them was counted."""


class Snapshot(NamedTuple):
    """The configuration as a counted step showed it."""

    step: int
    fingerprint: Fingerprint


class Drifting:
    """The drift of one run. Its methods are called on the thread that keeps the run's books."""

    def __init__(
        self,
        watch: Watch,
        peaks: Peaks,
        opened: Mapping[str, Fact],
        *,
        devices: int = 1,
        device_kind: str = "cpu",
        asks_for_counts: bool = False,
        files: DriftFiles | None = None,
        pulse: Callable[[], tuple[float | None, tuple[str, ...]]] | None = None,
        on_drift: Callable[[DriftEvent], None] | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._watch = watch
        # Our own generator: the user's are not touched.
        self._random = random.Random().random  # noqa: S311 - it thins out, and keeps no secret
        self.rest_s = 0.0
        """Time of steps that need not be entered: whoever passes one by takes its own off, and enters what ends it."""
        self._opened = opened
        self._device_kind = device_kind
        self._asks_for_counts = asks_for_counts
        self._files = files
        self._pulse = pulse
        self._on_drift = on_drift
        self._telemetry = telemetry
        reference = peaks.headline("bfloat16")
        self._reference_flops_per_s = None if reference is None else reference[1].flops_per_s * devices
        self._events: deque[DriftEvent] = deque(maxlen=MOST_EVENTS)
        # Found, and waiting for a counted step until the step with this index.
        self._waiting: list[tuple[Excursion, int]] = []
        self._counted: dict[str, Fact] = {}
        self._snapshots: deque[Snapshot] = deque(maxlen=64)
        self._clock_mhz: float | None = None
        self._usual_clock_mhz: float | None = None
        self._batch: float | None = None
        # Of steps whose exchange of gradients was timed: which, and how long it kept them waiting.
        self._exchanges: deque[tuple[int, float]] = deque(maxlen=64)
        self._least_exchange_s = math.inf
        self._step = self._steps = 0
        self._failed = False
        self.wants_count = False
        """Whether the next step is to be counted, to see what has changed."""

    # --- the path of a step ----------------------------------------------------------------------------------------

    def add(self, work: Work, kind: Kind, duration_s: float, waited_s: float | None) -> None:
        """Enter a timed step. An error of ours ends the watch, and nothing else."""
        if self._failed:
            return
        self.rest_s = 0.0
        if 0.0 < duration_s < SHORT_S:
            # As many steps like this one as are passed by where each is looked at with the same probability. In time,
            # so that long steps behind a short one are not passed by for it.
            passed = int(math.log(1.0 - self._random()) / math.log1p(-duration_s / SHORT_S))
            self.rest_s = (passed + 0.5) * duration_s if passed else 0.0
        try:
            asked = kind.asked
            if asked is None and kind.held is not None:
                asked = kind.asked = self._asked(kind.held)
            self._step = index = work.index
            found = self._watch.add(
                work.phase, asked, index, work.start_unix_ns, duration_s, work.tokens, waited_s, work.batch_running
            )
            self._steps = steps = self._steps + 1
            if found is not None:
                self._changed(found)
            if self._waiting and index >= self._waiting[0][1]:
                self._explain()
            if steps == UNSEEN_STEPS and not self._snapshots:
                # Work that is never counted as a step (requests) has a configuration all the same.
                self._see(work)
            if steps % TELL_EVERY == 0:
                self._report()
        except Exception as error:
            self._failed = True
            if not contained("the watch for drift", error):
                raise

    def _asked(self, held: Held) -> Asked:
        demand = held.demand
        return Asked(
            demand.model_flops,
            demand.hardware_flops,
            demand.expected_s,
            held.peak_flops_per_s,
            self._reference_flops_per_s,
        )

    def _report(self) -> None:
        if self._pulse is not None and self._usual_clock_mhz is None and self._watch.scores():
            # The clock that goes with the baseline.
            self._usual_clock_mhz, _ = self._pulse()
        if self._telemetry is not None:
            self._telemetry.drift_scores(self._watch.scores())
        if self._files is not None:
            self._files.keep_at_times(self._watch)

    def exchanged(self, exposed_s: float) -> None:
        """How long the exchange of gradients kept the step before the last one waiting (`ddp_times`)."""
        self._exchanges.append((self._step, exposed_s))
        self._least_exchange_s = min(self._least_exchange_s, exposed_s)
        if any(self._step >= excursion.onset_step for excursion, _ in self._waiting):
            self._explain()

    # --- what the run tells of its configuration -------------------------------------------------------------------

    def counted(self, work: Work, count: Count) -> None:
        """A step was counted, and shows what it ran."""
        with shield("seeing a configuration"):
            self.wants_count = False
            self._counted = configuration.counted(count)
            self._see(work)
            if self._waiting:
                self._explain()

    def _see(self, work: Work) -> None:
        first = not self._snapshots
        self._snapshots.append(Snapshot(work.index, self._fingerprint()))
        if first:
            self._configured(work)

    def _fingerprint(self) -> Fingerprint:
        return Fingerprint.of({**self._opened, **configuration.now(self._device_kind), **self._counted})

    def _configured(self, work: Work) -> None:
        """The first counted step completes what the run is known by to others of the same configuration."""
        shape: dict[str, Fact] = {"batch": work.batch_running, "sequence": None}
        if work.tokens and work.batch_running:
            shape["sequence"] = work.tokens / work.batch_running
        complete = Fingerprint.of({**self._opened, **configuration.now(self._device_kind), **self._counted, **shape})
        if self._telemetry is not None:
            self._telemetry.configured(complete.hash, complete.intent)
        if self._files is not None:
            self._files.begin(complete.hash, self._watch)
            for excursion in self._watch.excursions:
                # What an earlier attempt found and what has not recovered since is told of this one too.
                self._changed(excursion)

    # --- events ----------------------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[DriftEvent, ...]:
        """What was found so far; an excursion that has recovered says so."""
        return tuple(self._events)

    def _changed(self, excursion: Excursion) -> None:
        if excursion.recovered_step is not None:
            self._recovered(excursion)
            return
        if self._asks_for_counts:
            self.wants_count = True
            patience = PATIENCE_STEPS
        else:
            patience = PATIENCE_BETWEEN_RANKS if self._exchanges else 0
        self._waiting.append((excursion, excursion.found_step + patience))
        if not patience:
            self._explain()

    def _explain(self) -> None:
        """Give a cause to what was found, by what is known now."""
        waiting, self._waiting = self._waiting, []
        self.wants_count = False
        for excursion, _ in waiting:
            self._tell(self._event(excursion))

    def _event(self, excursion: Excursion) -> DriftEvent:
        before, after = excursion.before, excursion.after
        throttled: tuple[str, ...] = ()
        if self._pulse is not None:
            now_mhz, reasons = self._pulse()
            throttled = tuple(reason for reason in reasons if reason in _SLOWED)
            if self._usual_clock_mhz and now_mhz:
                before, after = replace(before, clock=1.0), replace(after, clock=now_mhz / self._usual_clock_mhz)
        before, after = self._between_ranks(excursion, before, after)
        diff = self._diff(excursion)
        found = attribute(before, after, kind=excursion.kind, phase=excursion.phase, diff=diff, throttled=throttled)
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
            cause=found.cause,
            evidence=found.evidence,
            parts=found.parts,
            fingerprint_diff=diff,
        )

    def _between_ranks(self, excursion: Excursion, before: Account, after: Account) -> tuple[Account, Account]:
        """The same with what was seen of exchanges: the shortest is taken for the bytes, the rest for late ranks."""
        least_s = self._least_exchange_s
        found: list[Account] = []
        for account, late in ((before, False), (after, True)):
            seen_s = [exposed_s for step, exposed_s in self._exchanges if (step >= excursion.onset_step) == late]
            if not seen_s:
                return before, after
            mean_s = min(sum(seen_s) / len(seen_s), account.time_s / account.steps)
            skew_s = max(0.0, mean_s - least_s)
            found.append(replace(account, comm_s=(mean_s - skew_s) * account.steps, skew_s=skew_s * account.steps))
        return found[0], found[1]

    def _diff(self, excursion: Excursion) -> tuple[str, ...]:
        """What changed of the configuration since the last time that it was seen well before the onset."""
        changed: list[str] = []
        # What was found may have begun in the middle of a block, and its onset is known to some blocks.
        before, after = excursion.before, excursion.now
        if excursion.phase in ("train", "eval"):
            changed += _other("batch", before.batch, after.batch)
            if before.tokens and after.tokens:
                changed += _other("tokens a step", before.tokens / before.steps, after.tokens / after.steps)
        # New shapes are counted when they first come, which may be before the onset as it is known.
        before_step = excursion.onset_step - ONSET_BLOCKS * self._watch.tuning.block_steps
        earlier = [seen for seen in self._snapshots if seen.step < before_step] or list(self._snapshots)[:1]
        if earlier:
            changed += earlier[-1].fingerprint.diff(self._fingerprint())
        return tuple(changed)

    def _tell(self, event: DriftEvent) -> None:
        self._events.append(event)
        log.warning("mfu_sdk: drift: %s", event)
        self._send(event)

    def _recovered(self, excursion: Excursion) -> None:
        if any(waiting.onset_step == excursion.onset_step for waiting, _ in self._waiting):
            self._explain()
        for index, event in enumerate(self._events):
            if (event.phase, event.onset_step) == (excursion.phase, excursion.onset_step):
                after = excursion.after.reference_mfu
                event = replace(
                    event,
                    recovered_step=excursion.recovered_step,
                    recovered_unix_ns=excursion.recovered_unix_ns,
                    current=event.current if after is None else after,
                )
                self._events[index] = event
                log.warning("mfu_sdk: drift: recovered: %s", event)
                self._send(event)
                return

    def _send(self, event: DriftEvent) -> None:
        if self._telemetry is not None:
            self._telemetry.drift(event)
        if self._files is not None:
            self._files.keep(self._watch)
        if self._on_drift is not None:
            with shield("the on_drift callback"):
                self._on_drift(event)

    def notes(self) -> list[str]:
        """What a reader of the summary should know."""
        ignored = self._watch.ignored
        if not ignored["no_room"]:
            return []
        return [f"{ignored['no_room']:,} steps are in phases or loads beyond those that are watched for drift"]

    def close(self) -> None:
        """Explain what still waits, and keep what was learnt for the next run."""
        self._explain()
        self._report()
        if self._files is not None:
            self._files.close(self._watch)


def _other(name: str, before: float | None, after: float | None) -> list[str]:
    if not before or not after or max(before / after, after / before) < BATCH_RATIO:
        return []
    return [f"{name}: {before:.4g} → {after:.4g}"]
