"""The measuring protocol: candidates take turns on a device, and batches either choose one or report its rate.

The fastest of several noisy rates is overstated by the luck that made it the fastest: of 75 equal ones with 0.8 %
noise by 1.9 %. So no batch does both. A short look at each leaves a few finalists; odd batches go round these and
choose, even ones run whichever leads, and only those of the winner are reported. They alternate, so that both see the
same clocks and the same heat.

Time and the device come from outside: what is simulated here runs the code that measures a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Protocol

from mfu_sdk.peak.statistics import within_run

Now = Callable[[], float]
Progress = Callable[[str, float], None]

_SLACK_S: Final = 1e-6
"""So that a budget of so many batches has room for all of them, however the seconds are rounded."""
_LAGS: Final = 0.9
"""A candidate whose median is below this share of the leader's is not tried again: noise is a few per cent."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch did: `work` (FLOPs or bytes) in `seconds` of device time, at `clock_mhz` where that is known."""

    work: float
    seconds: float
    clock_mhz: float | None = None

    @property
    def rate(self) -> float:
        """Work a second."""
        return self.work / self.seconds


class Candidate(Protocol):
    """One way to do the work: a kernel on operands of one shape."""

    @property
    def name(self) -> str:
        """What the winner is called by."""
        ...

    def run(self, seconds: float) -> Batch:
        """Work for about `seconds`, once at the least, and wait for it."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to measure what.

    For `drop_s`, but never longer than half of the budget, batches neither choose nor are reported: clocks boost then
    as no training step sees them. Batches last `batch_s`. It is over with `least` reported batches whose mean is known
    to within the share `precise`, or when the budget is spent. `finalists` are what is left after a first look of
    `look_s` at each candidate; among them batches of `choose_s` choose.
    """

    drop_s: float = 0.3
    batch_s: float = 0.05
    look_s: float = 0.005
    choose_s: float = 0.02
    finalists: int = 3
    least: int = 12
    precise: float = 0.01


@dataclass(frozen=True, slots=True)
class Sustain:
    """Heat first, then windows spaced apart, all under load, so that neighbours and throttling show between them."""

    preheat_s: float = 60.0
    windows: int = 3
    window_s: float = 5.0
    gap_s: float = 5.0
    batch_s: float = 0.05

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return self.preheat_s + self.windows * self.window_s + (self.windows - 1) * self.gap_s


QUICK: Final = Schedule()
IN_SITU: Final = Schedule(drop_s=0.5, least=1 << 30)
"""For a device that is at work already: the first half of the time is dropped, whatever the rest shows."""
SUSTAINED: Final = Sustain()


@dataclass(frozen=True, slots=True)
class Series:
    """What was measured: the winner's reported batches in groups, what the others reached, and what was left out.

    `chosen_by` maps each candidate to the median of the batches that chose, and `dropped` counts those in which the
    device came up to speed.
    """

    winner: str
    groups: tuple[tuple[Batch, ...], ...]
    chosen_by: Mapping[str, float]
    dropped: int

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The reported batches in the order of time."""
        return tuple(batch for group in self.groups for batch in group)

    @property
    def rates(self) -> tuple[tuple[float, ...], ...]:
        """Their rates, by group."""
        return tuple(tuple(batch.rate for batch in group) for group in self.groups)

    @property
    def clock_mhz(self) -> float | None:
        """The median clock of the reported batches, where it is known."""
        return clock_of(self.batches)


def clock_of(batches: Iterable[Batch]) -> float | None:
    """The median clock of some batches in MHz, where it is known."""
    known = [batch.clock_mhz for batch in batches if batch.clock_mhz is not None]
    return median(known) if known else None


def share_of(batches: Iterable[Batch], work_a_cycle: float) -> float | None:
    """How much of `work_a_cycle`, the most a device can do in one cycle of its clock, they did: the median batch's.

    What a clock that rises or falls does to a rate is not in it. None where no clock was known.
    """
    shares = [batch.rate / (work_a_cycle * batch.clock_mhz * 1e6) for batch in batches if batch.clock_mhz]
    return median(shares) if shares else None


@dataclass(slots=True)
class _Contest:
    """The finalists, and the rates of the batches that chose."""

    candidates: list[Candidate]
    odd: dict[str, list[float]] = field(default_factory=dict)
    turn: int = 0

    def leader(self) -> Candidate:
        """The candidate with the highest median so far; the first before any was tried."""
        tried = [each for each in self.candidates if each.name in self.odd]
        return max(tried, key=lambda each: median(self.odd[each.name])) if tried else self.candidates[0]

    def next(self) -> Candidate:
        """The next one in the round; whatever lags behind leaves once all were tried."""
        if all(each.name in self.odd for each in self.candidates):
            least = _LAGS * median(self.odd[self.leader().name])
            self.candidates = [each for each in self.candidates if median(self.odd[each.name]) >= least]
        self.turn += 1
        return self.candidates[(self.turn - 1) % len(self.candidates)]


def measure(
    candidates: Sequence[Candidate],
    schedule: Schedule,
    budget_s: float,
    now: Now,
    told: Callable[[float], None] = lambda _share: None,
) -> Series:
    """Run `candidates` in turns until the best of them is known well enough, or for `budget_s` seconds.

    First each has a short look, in the order given, for a third of the budget at the most; the fastest few of these are
    the finalists. `now` gives seconds that only rise; `told` hears the share of the budget that is gone. At least one
    batch of the winner is reported, however small the budget, also where others have spent it (0). Raises ValueError
    without candidates.
    """
    if not candidates:
        raise ValueError("no candidate to measure")
    began = now()
    looks = _look(candidates, schedule, began + budget_s / 3, now)
    near = [candidate for rate, candidate in looks if rate >= _LAGS * looks[0][0]]
    contest = _Contest(near[: schedule.finalists])
    even: dict[str, list[Batch]] = {}
    drop_s = min(schedule.drop_s, budget_s / 2)
    dropped = number = 0
    while True:
        spent = now() - began
        told(min(spent / budget_s, 1.0) if budget_s > 0 else 1.0)
        leader = contest.leader()
        reported = even.get(leader.name, [])
        # No batch is begun that would end behind the budget, but for the one that there must be.
        over = spent + schedule.batch_s > budget_s + _SLACK_S
        all_tried = len(contest.candidates) == 1 or all(each.name in contest.odd for each in contest.candidates)
        if reported and (over or (all_tried and _known(reported, schedule))):
            break
        # Alone there is nothing to choose; and when the budget is spent, the one that leads is reported.
        chooses = len(contest.candidates) > 1 and number % 2 == 0 and not over
        candidate = contest.next() if chooses else leader
        batch = candidate.run(schedule.choose_s if chooses else schedule.batch_s)
        if spent < drop_s and spent + batch.seconds < budget_s:
            dropped += 1
            continue
        number += 1
        if chooses:
            contest.odd.setdefault(candidate.name, []).append(batch.rate)
        else:
            even.setdefault(candidate.name, []).append(batch)
    compared = looks if len(candidates) > 1 else []
    chosen_by = {candidate.name: rate for rate, candidate in compared}
    chosen_by |= {name: median(rates) for name, rates in contest.odd.items()}
    return Series(leader.name, (tuple(reported),), chosen_by, dropped + len(compared))


def _look(candidates: Sequence[Candidate], schedule: Schedule, until: float, now: Now) -> list[tuple[float, Candidate]]:
    """A first rate of each candidate that there is time for, the fastest first; one alone needs no comparison."""
    if len(candidates) == 1:
        return [(0.0, candidates[0])]
    looks: list[tuple[float, Candidate]] = []
    for candidate in candidates:
        if looks and now() >= until:
            break
        # The first batch tells how many calls a batch takes, and warms up what is loaded with the first call.
        candidate.run(0.0)
        looks.append((candidate.run(schedule.look_s).rate, candidate))
    return sorted(looks, key=lambda look: look[0], reverse=True)


def sustain(
    candidate: Candidate, plan: Sustain, now: Now, told: Callable[[float], None] = lambda _share: None
) -> Series:
    """Run `candidate` hot for as long as `plan` says; the windows are the groups of what is reported."""
    began = now()
    groups: list[tuple[Batch, ...]] = []
    dropped = 0

    def work_until(end_s: float) -> list[Batch]:
        found: list[Batch] = []
        while not found or now() - began < end_s:
            found.append(candidate.run(plan.batch_s))
            told(min((now() - began) / plan.total_s, 1.0))
        return found

    if plan.preheat_s > 0:
        dropped += len(work_until(plan.preheat_s))
    for window in range(plan.windows):
        start_s = plan.preheat_s + window * (plan.window_s + plan.gap_s)
        if window and plan.gap_s > 0:
            dropped += len(work_until(start_s))
        groups.append(tuple(work_until(start_s + plan.window_s)))
    rates = [batch.rate for group in groups for batch in group]
    return Series(candidate.name, tuple(groups), {candidate.name: median(rates)}, dropped)


def _known(reported: Sequence[Batch], schedule: Schedule) -> bool:
    if len(reported) < schedule.least:
        return False
    rates = [batch.rate for batch in reported]
    return within_run([rates]) < schedule.precise * median(rates)
