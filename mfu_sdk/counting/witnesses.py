"""Counts one piece of work three times: by this package, by torch's own FlopCounterMode and by fvcore.

torch's counter runs at once with ours, on the same step, so no state has to be put back: its mode lies on top and runs
every operator on, ours lies beneath. fvcore cannot: it traces a forward of the model anew, so the model's buffers and
the random state are put back after it, and that forward is counted by ours once more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import registry
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.frames import only_infers_shapes
from mfu_sdk.counting.lines import Line, LinedMode
from mfu_sdk.counting.traced import Forward, FvcoreSaw, ask_fvcore
from mfu_sdk.counting.traps import TRAPS
from mfu_sdk.records import Convention, Count


@dataclass(frozen=True, slots=True)
class TorchSaw:
    """What FlopCounterMode said, in FLOPs by operator; and what its formulas give call by call for what really ran.

    `astray` maps an operator to what each known trap of torch's formulas added to it (rule → FLOPs, negative where it
    left out), worked out from the arguments of its calls. `sharded` is whether DTensors were met.
    """

    totals: Mapping[str, int]
    executed: Mapping[str, int]
    astray: Mapping[str, Mapping[str, int]]
    sharded: bool


@dataclass(frozen=True, slots=True)
class Observed:
    """One piece of work as its witnesses saw it; a witness that is missing or failed is None, and a note says why."""

    model: str
    count: Count
    lines: tuple[Line, ...]
    torch: TorchSaw | None
    fvcore: FvcoreSaw | None
    notes: tuple[str, ...]


class _Executed(TorchDispatchMode):
    """Prices each operator that really runs by torch's own formula, and by which trap that formula goes astray."""

    supports_higher_order_operators = True

    def __init__(self, ours: LinedMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._ours = ours
        self.totals: Counter[str] = Counter()
        self.astray: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.sharded = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(map(_wraps, types)):
            self.sharded = self.sharded or any(kind.__name__ == "DTensor" for kind in types)
            return NotImplemented
        self._ours.covered = False
        result = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        name = "" if packet is None else packet._qualified_op_name
        plain = flop_counter.flop_registry.get(packet)
        in_place = plain is None and name.startswith("aten::") and name.endswith("_")
        if in_place:
            plain = flop_counter.flop_registry.get(getattr(torch.ops.aten, name[len("aten::") : -1], None))
        first = next(tensors(result), None)
        if plain is None or (isinstance(first, FakeTensor) and only_infers_shapes()):
            return result
        name = name.removesuffix("_")
        flops = int(plain(*args, **kwargs, out_val=result))
        astray = self.astray[name]
        if self._ours.covered:
            self.totals[name] += flops
            astray["covered"] += flops
            return result
        if in_place:
            astray["in_place"] -= flops
        else:
            self.totals[name] += flops
        if registry.rule(func).kind == "users":
            # Whatever it says, the user knows better than either; how much is known when the count is.
            astray["users"] += 0
            return result
        call = Call(func, args, kwargs, result)
        for rule, trap in TRAPS.get(name, {}).items():
            if added := trap(call):
                astray[rule] += added
        return result


def _wraps(kind: type) -> bool:
    if not issubclass(kind, Tensor) or issubclass(kind, FakeTensor):
        return False
    plain: object = torch._C._disabled_torch_dispatch_impl  # pyright: ignore[reportAttributeAccessIssue]  # made in C++
    return getattr(kind, "__torch_dispatch__", plain) is not plain


def _refuse_branches(mode: Any) -> None:
    """Let torch's mode fail at torch.cond, which it runs in both branches: the step would not be the program's."""
    others = mode._handle_higher_order_ops

    def handle(func: Any, *call: Any) -> Any:
        if func is torch.ops.higher_order.cond:
            raise RuntimeError("it would run both branches of torch.cond")
        return others(func, *call)

    mode._handle_higher_order_ops = handle


class Witnesses:
    """Ours and torch's counter from `start` to `stop`, in one thread; `observed` then asks fvcore too.

    Without `with_torch` torch's counter stays away, and `why_not` says why.
    """

    def __init__(self, *, with_torch: bool = True, why_not: str = "", convention: Convention = "exact") -> None:
        self._ours = LinedMode(convention=convention, reach="none")
        self._executed = _Executed(self._ours)
        self._theirs = flop_counter.FlopCounterMode(display=False) if with_torch else None
        self._notes = [] if with_torch else [why_not]
        self._stack = ExitStack()
        self._first: Forward | None = None
        self._outermost = ""
        self.started = False

    def called(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The work calls this model; fvcore is asked about the first such call."""
        if self._first is None:
            self._first = Forward(model, args, kwargs)
            self._outermost = type(model).__name__

    def start(self) -> None:
        """Count from here on."""
        self.started = True
        self._stack.enter_context(self._ours)
        if self._theirs is not None:
            self._stack.enter_context(self._executed)
            self._stack.enter_context(self._theirs)
            _refuse_branches(self._theirs.mode)

    def stop(self) -> None:
        """Count no further; calling it twice is harmless."""
        self._stack.close()

    def observed(self) -> Observed:
        """What each witness saw; fvcore runs the first call of the model again, if it is installed."""
        theirs = None
        if self._theirs is not None:
            totals = Counter[str]()
            for target, flops in self._theirs.flop_counts.get("Global", {}).items():
                totals[getattr(target, "_qualified_op_name", None) or str(target)] += int(flops)
            theirs = TorchSaw(totals, self._executed.totals, self._executed.astray, self._executed.sharded)
        fvcore = None
        if self._first is None:
            self._notes.append("fvcore: no module ran, and fvcore counts modules only")
        else:
            said = ask_fvcore(self._first)
            if isinstance(said, str):
                self._notes.append(said)
            else:
                fvcore = said
        return Observed(
            self._outermost, self._ours.result(), self._ours.lines(), theirs, fvcore, tuple(self._notes)
        )  # fmt: skip
