"""The run's sums, kept as its windows close, so that the run's span and its windows agree."""

from dataclasses import dataclass
from typing import TypeVar

from mfu_sdk.export.signals import UNSEEN, Signals
from mfu_sdk.export.windows import Sums, ratio

_Number = TypeVar("_Number", int, float)


@dataclass(slots=True)
class Totals:
    """Σ over windows; None until there is something to sum, and for good once a window does not know its part."""

    time_s: float | None = None
    tokens: int | None = None
    model_flops: int | None = None
    hardware_flops: int | None = None
    available_flops: float | None = None
    data_wait_s: float | None = None
    comm_s: float | None = None
    skew_s: float | None = None
    host_s: float | None = None
    _finished: bool = False
    _timed: bool = False
    _counted: bool = False

    @property
    def mfu(self) -> float | None:
        """Σ model FLOPs / Σ available FLOPs."""
        return ratio(self.model_flops, self.available_flops)

    @property
    def hfu(self) -> float | None:
        """Σ hardware FLOPs / Σ available FLOPs."""
        return ratio(self.hardware_flops, self.available_flops)

    def add(self, window: Sums, seen: Signals = UNSEEN) -> None:
        """Add a closed window, and what else was `seen` of it; one without finished, timed or counted steps has no part
        in those sums.
        """
        if window.finished:
            self.tokens = _plus(self.tokens, window.tokens, self._finished)
            self._finished = True
        if window.timed:
            self.time_s = _plus(self.time_s, window.time_s, self._timed)
            self.data_wait_s = _plus(self.data_wait_s, window.data_wait_s, self._timed)
            self.comm_s = _plus(self.comm_s, seen.comm_s, self._timed)
            self.skew_s = _plus(self.skew_s, seen.skew_s, self._timed)
            self.host_s = _plus(self.host_s, seen.host_s, self._timed)
            self._timed = True
        if window.counted:
            self.model_flops = _plus(self.model_flops, window.model_flops, self._counted)
            self.hardware_flops = _plus(self.hardware_flops, window.hardware_flops, self._counted)
            self.available_flops = _plus(self.available_flops, window.available_flops, self._counted)
            self._counted = True


def _plus(total: _Number | None, part: _Number | None, begun: bool) -> _Number | None:
    if not begun:
        return part
    return None if total is None or part is None else total + part
