"""One stream of steps of one phase at one load: steps into blocks, blocks into levels, levels into excursions."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Final, Literal, NamedTuple

from mfu_sdk.drift.account import Account, Asked, Sums, Took, sums
from mfu_sdk.drift.budget import Budget
from mfu_sdk.drift.detector import Baseline, Detector, Tuning

Measure = Literal["flop_rate", "token_rate", "efficiency"]
"""What is judged, each as a logarithm. `flop_rate`: model FLOPs a second, so that no denominator hides anything;
`token_rate`: tokens a second; `efficiency`: MFU over the MFU expected at this load, which the load does not move."""
MEASURES: Final[Mapping[str, tuple[Measure, ...]]] = {
    "train": ("flop_rate", "token_rate"),
    "eval": ("flop_rate", "token_rate"),
}
"""By phase. In training the load is configuration and nothing absorbs it; elsewhere it comes and goes with requests."""
OF_REQUESTS: Final[tuple[Measure, ...]] = ("efficiency",)
KEPT_BLOCKS: Final = 256
"""How far back an onset is looked for."""
_NOW_BLOCKS: Final = 4


class Block(NamedTuple):
    """So many steps in a row: their median levels by measure, and their sums."""

    first: int
    start_unix_ns: int
    last: int
    end_unix_ns: int
    levels: Mapping[Measure, float]
    sums: Sums

    @property
    def account(self) -> Account:
        """The sums as an account."""
        return Account(*self.sums)


@dataclass(frozen=True, slots=True)
class Excursion:
    """From a change to the recovery from it. Steps are indices, times are Unix nanoseconds.

    `ratio` is the level since the onset over the baseline's. `before` are sums over the baseline, `after` over what is
    known since the onset, `now` over the last blocks before it was found. `score` is the evidence then, over the
    `threshold` that it had to reach.
    """

    kind: Literal["drop", "rise"]
    phase: str
    measure: Measure
    onset_step: int
    onset_unix_ns: int
    found_step: int
    found_unix_ns: int
    ratio: float
    score: float
    threshold: float
    before: Account
    after: Account
    now: Account
    recovered_step: int | None = None
    recovered_unix_ns: int | None = None


class Stream:
    """Steps of one phase at one load, in the order in which they ended. Memory does not grow."""

    def __init__(self, phase: str, tuning: Tuning, budget: Budget) -> None:
        self.phase = phase
        self._tuning = tuning
        self._budget = budget
        self._measures = MEASURES.get(phase, OF_REQUESTS)
        self._settling = tuning.settle_steps
        self._steps: list[Took] = []
        self._levels: dict[Measure, list[float]] = {measure: [] for measure in self._measures}
        self._detectors: dict[Measure, Detector] = {}
        self._kept: deque[Block] = deque(maxlen=KEPT_BLOCKS)
        # Measures whose baseline is this run's own, and the sums of the blocks that it is learnt from.
        self._own: set[Measure] = set()
        self._gathered: Account | None = None
        self._before: Account | None = None
        self.excursion: Excursion | None = None
        """What was found and has not recovered."""

    @property
    def watching(self) -> bool:
        """Whether there is a baseline to hold anything against."""
        return bool(self._detectors)

    @property
    def score(self) -> float:
        """The most evidence that any detector has, over what it needs."""
        return max((each.score / each.threshold for each in self._detectors.values()), default=0.0)

    def add(self, took: Took) -> Excursion | None:
        """Enter a step: the excursion that began, or ended, with it."""
        if self._settling:
            self._settling -= 1
            return None
        self._steps.append(took)
        if len(self._steps) < self._tuning.block_steps:
            return None
        steps, self._steps = self._steps, []
        return self.add_block(_block(steps, self._measures))

    def add_block(self, block: Block) -> Excursion | None:
        """Enter a block: the excursion that began, or ended, with it."""
        self._kept.append(block)
        if len(self._own) < len(self._measures):
            self._gather(block)
        if self.excursion is not None:
            return self._follow(self.excursion, block)
        for measure, detector in self._detectors.items():
            level = block.levels.get(measure)
            if level is None:
                continue
            change = detector.add(level)
            if change == "drop" or change == "rise":
                self.excursion = self._found(measure, detector, change)
                return self.excursion
        return None

    def _gather(self, block: Block) -> None:
        """Learn the run's own baselines, as long as nothing is wrong by those that others left it."""
        if self.excursion is not None:
            return
        if not self._own:
            self._gathered = block.account if self._gathered is None else self._gathered + block.account
        for measure, levels in self._levels.items():
            if measure in self._own or measure not in block.levels:
                continue
            levels.append(block.levels[measure])
            if len(levels) >= self._tuning.baseline_blocks:
                self._before = self._gathered or block.account
                self._begin(measure, Baseline.of(levels, self._tuning), self._before)
                self._own.add(measure)
                levels.clear()

    def _begin(self, measure: Measure, baseline: Baseline, before: Account) -> None:
        self._detectors[measure] = Detector(self._tuning, baseline, self._threshold(before))

    def _threshold(self, before: Account) -> float:
        block_s = before.time_s / before.steps * self._tuning.block_steps
        # Each measure is watched for drops and for rises.
        return self._budget.threshold(block_s, tests=2 * len(self._measures))

    def _found(self, measure: Measure, detector: Detector, kind: Literal["drop", "rise"]) -> Excursion:
        base = detector.baseline
        blocks = [block for block in self._kept if measure in block.levels]
        levels = [block.levels[measure] for block in blocks]
        now = median(levels[-_NOW_BLOCKS:])
        first = onset(levels, base.middle, now)
        since = blocks[first:]
        self._kept = deque(since, maxlen=KEPT_BLOCKS)
        return Excursion(
            kind,
            self.phase,
            measure,
            since[0].first,
            since[0].start_unix_ns,
            since[-1].last,
            since[-1].end_unix_ns,
            math.exp(median(levels[first:]) - base.middle),
            detector.score / detector.threshold,
            detector.threshold,
            self._before or since[0].account,
            _total(since),
            _total(since[-_NOW_BLOCKS:]),
        )

    def _follow(self, excursion: Excursion, block: Block) -> Excursion | None:
        """Look for the end of an excursion by the measure that found it."""
        measure = excursion.measure
        level, detector = block.levels.get(measure), self._detectors[measure]
        if level is None:
            return None
        if detector.add(level) != "recovery":
            self.excursion = replace(excursion, after=excursion.after + block.account)
            return None
        for each in self._detectors.values():
            each.restart()
        # Only what came since the onset has been kept; indices say nothing of that where a run was started again.
        blocks = [block for block in self._kept if measure in block.levels]
        levels = [block.levels[measure] for block in blocks]
        first = onset(levels, detector.baseline.middle + math.log(excursion.ratio), median(levels[-_NOW_BLOCKS:]))
        self.excursion = None
        # The next onset is looked for behind this one's end.
        self._kept = deque(blocks[first:], maxlen=KEPT_BLOCKS)
        # What came before the recovery's onset is the excursion's; the sums hold the few blocks after it as well.
        return replace(excursion, recovered_step=blocks[first].first, recovered_unix_ns=blocks[first].start_unix_ns)

    def state(self) -> dict[str, Any]:
        """What has been learnt, as plain data; steps of the block that is under way are not in it."""
        return {
            "before": None if self._before is None else asdict(self._before),
            "own": sorted(self._own),
            "detectors": {measure: detector.state() for measure, detector in self._detectors.items()},
            "excursion": None if self.excursion is None else asdict(self.excursion),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was told. Raises ValueError, KeyError or TypeError for what is none of ours."""
        before = None if state["before"] is None else Account(**state["before"])
        detectors: dict[Measure, Detector] = {
            measure: Detector.restored(self._tuning, state["detectors"][measure])
            for measure in self._measures
            if measure in state["detectors"]
        }
        excursion = None
        if (told := state["excursion"]) is not None:
            excursion = Excursion(**{**told, **{name: Account(**told[name]) for name in ("before", "after", "now")}})
            if excursion.measure not in detectors:
                raise ValueError(f"excursion of {excursion.measure!r}: there is no detector of it")
        self._before, self._detectors, self.excursion = before, detectors, excursion
        self._own = {measure for measure in detectors if measure in state["own"]}
        if before is not None:
            # The budget is that of now.
            for detector in detectors.values():
                detector.threshold = self._threshold(before)

    def baselines(self) -> dict[str, Any] | None:
        """The run's own baselines and what is known of their steps, as plain data for `warm`; None without any."""
        if not self._own or self._before is None:
            return None
        levels = {measure: asdict(self._detectors[measure].baseline) for measure in self._own}
        return {"before": asdict(self._before), "levels": levels}

    def warm(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Take over the baselines of earlier runs of the same configuration (`baselines`), and watch from now on.

        Between the bounds of several runs there is room; the run's own baseline takes their place once it is known, if
        nothing was wrong by theirs.

        Raises ValueError, KeyError or TypeError for what is none of ours.
        """
        before = Account(**runs[-1]["before"])
        pooled: dict[Measure, Baseline] = {
            measure: Baseline.pooled([Baseline(**run["levels"][measure]) for run in runs])
            for measure in self._measures
            if all(measure in run["levels"] for run in runs)
        }
        if not all(math.isfinite(each.low + each.high + each.scale) and each.scale > 0 for each in pooled.values()):
            raise ValueError(f"{pooled}: must be finite, each scale above 0")
        self._before = before
        for measure, baseline in pooled.items():
            self._begin(measure, baseline, before)


def onset(levels: Sequence[float], before: float, after: float) -> int:
    """Where `levels` went from `before` to `after`: the most likely index, for noise that is the same on both sides.

    The sum over what follows of the distances beyond half-way is largest there.
    """
    half, sign = (before + after) / 2, math.copysign(1.0, after - before)
    best, first, total = -math.inf, len(levels) - 1, 0.0
    for index in range(len(levels) - 1, -1, -1):
        total += sign * (levels[index] - half)
        if total >= best:
            best, first = total, index
    return first


def _block(steps: Sequence[Took], measures: Sequence[Measure]) -> Block:
    numbers, starts_unix_ns, asked, times_s, tokens, _, _ = zip(*steps, strict=True)
    logs_s = [math.log(time_s) for time_s in times_s]
    levels: dict[Measure, float] = {}
    for measure in measures:
        amounts = tokens if measure == "token_rate" else asked
        # Most blocks are of steps that ask for the same.
        if amounts.count(amounts[0]) == len(steps):
            amount = _log_amount(measure, amounts[0])
            if amount is not None:
                levels[measure] = amount - median(logs_s)
            continue
        logs = [_log_amount(measure, amount) for amount in amounts]
        known = [amount - log_s for amount, log_s in zip(logs, logs_s, strict=True) if amount is not None]
        if len(known) == len(steps):
            levels[measure] = median(known)
    end_unix_ns = starts_unix_ns[-1] + round(times_s[-1] * 1e9)
    return Block(numbers[0], starts_unix_ns[0], numbers[-1], end_unix_ns, levels, sums(steps))


def _log_amount(measure: Measure, amount: Asked | int | None) -> float | None:
    """The logarithm of what a step did by this measure; a whole number's has no upper end."""
    done: float | None
    if isinstance(amount, Asked):
        done = amount.model_flops if measure == "flop_rate" else amount.expected_s
    else:
        done = amount
    return math.log(done) if done is not None and done > 0 else None


def _total(blocks: Sequence[Block]) -> Account:
    total = blocks[0].account
    for block in blocks[1:]:
        total += block.account
    return total
