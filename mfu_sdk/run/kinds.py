"""Steps that are alike: of one phase and demand, held against one peak, summed up on the path of the step."""

from __future__ import annotations

from mfu_sdk.drift.account import Asked
from mfu_sdk.records import Phase
from mfu_sdk.run.held import Held


class Kind:
    """So many steps of one kind, and their seconds. All else about them is a multiple of the one or of the other.

    `held` is None where their FLOPs are not known. `waited_s` are the seconds of waiting for data, of each step at
    most its own; `waits_known` whether all steps told theirs. `token_time_s` is the time of the steps that told their
    `tokens`. A step that is shorter than `doubtful_below_s` was faster than the device was measured to be, or than its
    peak: `beyond` and `above_one` say how many were. `asked` is what the watch for drift knows of `held`, once it asks.
    """

    __slots__ = (
        "_usual_s",
        "above_one",
        "asked",
        "beyond",
        "doubtful_below_s",
        "held",
        "phase",
        "steps",
        "time_s",
        "token_time_s",
        "tokens",
        "waited_s",
        "waits_known",
    )

    def __init__(self, held: Held | None, phase: Phase = "train") -> None:
        self.held = held
        self.phase: Phase = phase
        self.asked: Asked | None = None
        self.doubtful_below_s = 0.0
        if held is not None and held.peak_flops_per_s:
            slowest = min(held.peak_flops_per_s, held.achievable_high_flops_per_s or held.peak_flops_per_s)
            # With room for rounding: what is below is looked at again.
            self.doubtful_below_s = 1.001 * held.demand.model_flops / slowest
        self.steps = 0
        self.time_s = self._usual_s = 0.0
        self.clear()

    @property
    def usual_s(self) -> float:
        """Mean seconds of its steps since it was cleared, or before that; 0 where there was none."""
        return self.time_s / self.steps if self.steps else self._usual_s

    def clear(self) -> None:
        """Begin anew: what there was has been entered elsewhere."""
        self._usual_s = self.usual_s
        self.steps = 0
        self.time_s = 0.0
        self.tokens = 0
        self.token_time_s = 0.0
        self.waited_s = 0.0
        self.waits_known = True
        self.beyond = 0
        self.above_one = 0

    def add(self, duration_s: float, tokens: int | None, waited_s: float | None) -> None:
        """Enter one step."""
        self.steps += 1
        self.time_s += duration_s
        if tokens is not None:
            self.tokens += tokens
            self.token_time_s += duration_s
        if waited_s is None:
            self.waits_known = False
        else:
            # Waits of one step may be longer than it, where it began late.
            self.waited_s += waited_s if waited_s < duration_s else duration_s
        if duration_s < self.doubtful_below_s:
            self._doubt(duration_s)

    def _doubt(self, duration_s: float) -> None:
        held = self.held
        assert held is not None
        assert held.peak_flops_per_s is not None
        fastest = held.achievable_high_flops_per_s
        self.beyond += fastest is not None and held.demand.model_flops > fastest * duration_s
        self.above_one += held.demand.model_flops > held.peak_flops_per_s * duration_s > 0
