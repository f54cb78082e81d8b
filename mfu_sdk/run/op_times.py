"""How long the operators of some steps take, each by itself: what the device worked, on a processor."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import mode_stack, registry
from mfu_sdk.counting.part import wraps
from mfu_sdk.counting.traffic import COLLECTIVES
from mfu_sdk.drift.samples import Ran
from mfu_sdk.guard import contained, shield
from mfu_sdk.run.collective_waits import CollectiveWaits

if TYPE_CHECKING:
    from mfu_sdk.records import Phase
    from mfu_sdk.run.clock import HostClock
    from mfu_sdk.run.evidence import Gathered

_NO_KEYWORDS: Final[Mapping[str, Any]] = {}
_running: Final[list[OpTimes]] = []


EVERY, FIRST = 8, 13
"""Steps from one whose operators are timed to the next, and the index of the first: never that of a counted step."""
CALL_S = 1e-5
"""What timing is reckoned to add to an operator, until a timed step has been held against others (`OpTimes.longer`).

Measured on an AMD EPYC with 2 cores, torch 2.13, Python 3.11, November 2026: 6 µs alone in a loop, 6.5 to 9.5 in a step
of a GPT with 969 operators, and 14 to 20 in one of 77, where all that timing needs has left the caches.
"""
MOST_CALL_S = 1e-4
"""What is believed of that at most: a step that took longer was held up by something else."""
MOST_OF_RUN = 0.005
"""The share of the run's time that timing may take."""
_CALLS_EXPECTED = 1000
_BETWEEN_STAGES = ("send", "recv")
# Older versions of torch leave eager for good what they first compile under a mode.
_KEEPS_COMPILATION: Final = hasattr(TorchDispatchMode, "ignore_compile_internals")


class OpTimes(TorchDispatchMode):
    """Times operators while it is on, and knows when a step may be timed.

    On a processor an operator has done its work when it returns; on a GPU it has not, and such times would say
    nothing. torch's own profiler would tell the same, but took 2 s at its first use and 25 ms at each later one
    (torch 2.13, November 2026), and prints to the user's terminal.
    """

    supports_higher_order_operators = True

    def __init__(self, clock: HostClock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._clock = clock
        self._waits = CollectiveWaits(clock)
        self._opened = clock.mark()
        self._seconds: defaultdict[Any, float] = defaultdict(float)
        self._calls = self._timed_calls = _CALLS_EXPECTED
        self._call_s = CALL_S
        self._spent_s = 0.0
        # Before this moment the run has not lasted long enough: all that is asked at the turn of most steps.
        self._not_before_ns = 0
        self._alone = True
        self.sees_waits = True
        """Whether what the model waits for other ranks shows (`ddp_times.waits_unseen`)."""
        self.pauses = 0
        """For how many reasons operators run by and are not timed."""

    @property
    def rests(self) -> bool:
        """Whether the run has not lasted long enough for the next one."""
        return self._clock.mark() < self._not_before_ns

    def due(self, step: int, *, wanted: bool = False) -> bool:
        """Whether the operators of the run's `step`-th step are to be timed, by its number and by what that costs.

        Of one that is `wanted` the price does not matter.
        """
        if step < FIRST or (step - FIRST) % EVERY or (not wanted and self.rests):
            return False
        return self.earned(wanted=wanted)

    def earned(self, *, wanted: bool = False) -> bool:
        """Whether nothing speaks against it now, and the run has lasted long enough for it, or it is wanted."""
        if not _KEEPS_COMPILATION:
            return False
        # A profiler of the user's would show a mode in some steps that is not theirs.
        if _compiled_graphs() or torch.autograd._profiler_enabled():  # type: ignore[attr-defined]  # not in its list
            return False
        open_s = self._clock.elapsed_s(self._opened, self._clock.mark())
        needed_s = (self._spent_s + self._calls * self._call_s) / MOST_OF_RUN
        if wanted or needed_s <= open_s:
            return True
        self._not_before_ns = self._opened + int(needed_s * 1e9)
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave `torch.compile` on."""
        return True

    def start(self) -> None:
        """Begin anew, beneath every mode of the user's."""
        self._seconds.clear()
        self._calls = 0
        # What another monitor does in the same step would be taken for the operators' time.
        self._alone = not _running
        for other in _running:
            other._alone = False
        _running.append(self)
        mode_stack.insert(self)
        self._waits.start()

    def stop(self) -> None:
        """Leave the stack; nothing where it is not on."""
        if self in _running:
            _running.remove(self)
            mode_stack.remove(self)
            self._waits.stop()
            self._timed_calls = self._calls
            self._spent_s += self._calls * self._call_s

    def longer(self, seconds: float) -> None:
        """The step that was timed last took so much longer than others like it: that is what timing costs here."""
        calls = self._timed_calls
        if not calls:
            return
        call_s = min(max(seconds / calls, CALL_S), MOST_CALL_S)
        # What that one took has been reckoned already; the next one is reckoned at the mean of the last few.
        self._spent_s += calls * (call_s - self._call_s)
        self._call_s += (call_s - self._call_s) / 4

    def tell(self, gathered: Gathered, hardware_flops: int, phase: Phase = "train") -> Ran:
        """Enter what the step that was timed last, of so many FLOPs, has shown, and return that.

        What it waited for other ranks' data is taken for the whole of its exchanges: of one that ran beside work it is
        a part, and its bus rate comes out too high.
        """
        seconds = self.seconds() or {}
        if seconds:
            gathered.ran(seconds, hardware_flops, phase)
        waited_s = self.exchanged_s() if self.sees_waits else None
        if waited_s is not None:
            gathered.exchanged(waited_s, of_all=True, phase=phase, whole_s=waited_s)
        return Ran(seconds, sum(seconds.values()) if seconds else None, hardware_flops, waited_s)

    def seconds(self) -> dict[str, float] | None:
        """Seconds by operator, named as in `OpCost`, without collectives; None where they would not be all there is.

        That is where something compiled runs in the process (its kernels pass no dispatcher), or another monitor timed
        operators too.
        """
        if not self._alone or _compiled_graphs():
            return None
        found: defaultdict[str, float] = defaultdict(float)
        for func, seconds in self._seconds.items():
            name = registry.rule(func).name
            if name.partition("::")[0] not in COLLECTIVES:
                found[name] += seconds
        return dict(found)

    def exchanged_s(self) -> float | None:
        """Seconds that the step waited for other ranks' data, in collectives and for them; None where not all show.

        That is where operators would not be all there is (`seconds`), where collectives ran and nothing was seen to
        wait for them, and in a pipeline: its stages wait for one another by design, which is neither transfer nor skew.
        """
        if not self._alone or _compiled_graphs():
            return None
        waits, seconds = self._waits.calls, self._waits.seconds
        for func, taken_s in self._seconds.items():
            namespace, _, name = registry.rule(func).name.partition("::")
            if namespace in COLLECTIVES:
                if name.startswith(_BETWEEN_STAGES):
                    return None
                waits += name.startswith("wait_tensor")
                seconds += taken_s
        return seconds if waits else None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, and time it."""
        if kwargs is None:
            kwargs = _NO_KEYWORDS
        if types and any(map(wraps, types)):
            # A subclass (DTensor, a collective's result) unwraps, waits and exchanges: what it runs comes back here.
            return NotImplemented
        if self.pauses:
            return func(*args, **kwargs)
        clock = self._clock
        began = clock.mark()
        result = func(*args, **kwargs)
        try:
            self._calls += 1
            self._seconds[func] += clock.elapsed_s(began, clock.mark())
        except Exception as error:
            if not contained("timing an operator", error):
                raise
        return result


def _compiled_graphs() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return 0
    with shield("asking what was compiled"):
        return int(dynamo.counters["stats"].get("unique_graphs", 0))
    # What cannot be asked may be there.
    return 1
