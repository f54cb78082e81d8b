"""A run's watch for drift: timed steps into the pure detector, what it finds into events with their causes.

On the path of a step it costs a look-up and an append. Each sixteenth step closes a block and pays for its median and
its bets, some microseconds. Nothing needs a thread of its own, so that `on_drift` is called where `on_step` is.

What changed near an onset is known from counted steps, which show the operators that ran, and from torch's switches.
Where a process is on its own, an alarm asks for the next step to be counted; its event waits for that, a block at most.
Sampled steps show which kernels ran and how long the device worked; where there were some before an onset and none
since, the alarm asks for one of those too.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mfu_sdk.drift.account import Asked
from mfu_sdk.drift.attribution import attribute
from mfu_sdk.drift.detector import NAME
from mfu_sdk.drift.stream import Excursion
from mfu_sdk.drift.watch import Watch
from mfu_sdk.guard import contained, log, shield
from mfu_sdk.records import Count, DriftEvent, Peaks
from mfu_sdk.run.changes import Changes
from mfu_sdk.run.sides import Sides

if TYPE_CHECKING:
    from mfu_sdk.drift.fingerprint import Fact
    from mfu_sdk.drift.samples import Ran
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.run.drift_files import DriftFiles, Left
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
PATIENCE_FOR_A_SAMPLE: Final = 32
"""Steps that it waits for one of them to be sampled, which may happen in every eighth."""
PATIENCE_BETWEEN_RANKS: Final = 128
"""Steps that it waits for the exchange of one of them to be timed, which torch does in every hundredth."""
TELL_EVERY: Final = 64
"""Steps between two reports of the evidence that there is."""
_SLOWED: Final = frozenset(
    {"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "power brake"}
)


UNSEEN_STEPS: Final = 8
"""Steps after which the configuration is taken down where none of them was counted."""


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
        alone: bool = False,
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
        # Ranks must not wait for one another's slow steps: only a process on its own asks for them.
        self._alone = alone
        self._files = files
        self._pulse = pulse
        self._on_drift = on_drift
        self._telemetry = telemetry
        reference = peaks.headline("bfloat16")
        self._reference_flops_per_s = None if reference is None else reference[1].flops_per_s * devices
        self._events: deque[DriftEvent] = deque(maxlen=MOST_EVENTS)
        # Found, and waiting for a counted step until the step with this index.
        self._waiting: list[tuple[Excursion, int]] = []
        self._usual_clock_mhz: float | None = None
        self._sides = Sides(watch.tuning.block_steps, alone=alone)
        self._changes = Changes(opened, device_kind, self._sides)
        self._steps = 0
        self._index = -1
        self._failed = False
        self.wants_count = False
        """Whether the next step is to be counted, to see what has changed."""
        self.wants_sample = False
        """Whether the next step that can be is to be sampled, whatever it costs, to see the same."""

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
            self._index = index = work.index
            found = self._watch.add(
                work.phase, asked, index, work.start_unix_ns, duration_s, work.tokens, waited_s, work.batch_running
            )
            self._steps = steps = self._steps + 1
            if found is not None:
                self._changed(found)
            if self._waiting and index >= self._waiting[0][1]:
                self._explain()
            if steps == UNSEEN_STEPS and not self._changes.seen:
                # Work that is never counted as a step (requests) has a configuration all the same.
                self._changes.see(work)
                self._configured(work)
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
            self._files.keep_at_times(self._watch, self._left)

    def exchanged(self, step: int, exposed_s: float) -> None:
        """How long the exchange of gradients kept the step with this index waiting (`ddp_times`)."""
        with shield("seeing an exchange"):
            self._sides.exchanged(step, exposed_s)
            if self._awaits_exchange(step):
                self._explain()

    def sampled(self, work: Work, ran: Ran) -> None:
        """A step was sampled, and shows what ran in it."""
        with shield("seeing what ran"):
            wanted = self.wants_sample and any(excursion.phase == work.phase for excursion, _ in self._waiting)
            self._sides.sampled(work.phase, work.index, ran, apart=wanted)
            if wanted:
                self.wants_sample = False
            seen = wanted and not self.wants_count
            if seen or (ran.exposed_s is not None and self._awaits_exchange(work.index)):
                self._explain()

    def _awaits_exchange(self, step: int) -> bool:
        return any(step >= excursion.onset_step for excursion, _ in self._waiting)

    # --- what the run tells of its configuration -------------------------------------------------------------------

    def counted(self, work: Work, count: Count) -> None:
        """A step was counted, and shows what it ran."""
        with shield("seeing a configuration"):
            first = not self._changes.seen
            self._changes.counted(work, count)
            if first:
                self._configured(work)
            if any(excursion.phase == work.phase for excursion, _ in self._waiting):
                self.wants_count = False
                if not self.wants_sample:
                    self._explain()

    def _configured(self, work: Work) -> None:
        """The first counted step completes what the run is known by to others of the same configuration."""
        complete = self._changes.complete(work)
        if self._telemetry is not None:
            self._telemetry.configured(complete.hash, complete.intent)
        if self._files is not None:
            before = self._changes.before = self._files.begin(complete.hash, self._watch)
            self._usual_clock_mhz = self._changes.clock_before_mhz
            found = {} if before is None else {_key(event): event for event in before.events}
            for excursion in self._watch.excursions:
                # What an earlier attempt found and what has not recovered since is told of this one too, with the cause
                # that was seen then.
                if (event := found.get(_key(excursion))) is not None:
                    self._tell(event)
                else:
                    self._changed(excursion)

    # --- events ----------------------------------------------------------------------------------------------------

    def rested(self, idle_s: float, step_s: float) -> None:
        """Of the last `step_s` seconds of steps a GPU's driver saw no kernel run in `idle_s`. In its own thread."""
        self._sides.rested(self._index, idle_s, step_s)

    @property
    def events(self) -> tuple[DriftEvent, ...]:
        """What was found so far; an excursion that has recovered says so."""
        return tuple(self._events)

    def _changed(self, excursion: Excursion) -> None:
        if excursion.recovered_step is not None:
            self._recovered(excursion)
            return
        if self._alone:
            self.wants_count = True
            patience = PATIENCE_STEPS
            if self._sides.want_a_sample(excursion):
                self.wants_sample = True
                patience = PATIENCE_FOR_A_SAMPLE
        else:
            patience = PATIENCE_BETWEEN_RANKS if self._sides.sees_exchanges else 0
        self._waiting.append((excursion, excursion.found_step + patience))
        if not patience:
            self._explain()

    def _explain(self) -> None:
        """Give a cause to what was found, by what is known now."""
        waiting, self._waiting = self._waiting, []
        self.wants_count = self.wants_sample = False
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
        before, after = self._sides.accounts(excursion, before, after)
        diff = self._changes.diff(excursion)
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

    def _tell(self, event: DriftEvent) -> None:
        self._events.append(event)
        log.warning("mfu_sdk: drift: %s", event)
        self._send(event)

    def _recovered(self, excursion: Excursion) -> None:
        if any(waiting.onset_step == excursion.onset_step for waiting, _ in self._waiting):
            self._explain()
        for index, event in enumerate(self._events):
            if _key(event) == _key(excursion):
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
            self._files.keep(self._watch, self._left)
        if self._on_drift is not None:
            with shield("the on_drift callback"):
                self._on_drift(event)

    def _left(self) -> Left | None:
        """What another attempt of this run is to know."""
        going_on = tuple(event for event in self._events if event.recovered_step is None)
        return self._changes.left(self._usual_clock_mhz, going_on)

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
            self._files.close(self._watch, self._left)


def _key(found: Excursion | DriftEvent) -> tuple[str, int]:
    return found.phase, found.onset_step
