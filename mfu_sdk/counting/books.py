"""Enters what runs into a tally: each call at its price, at its place, once.

What is no single operator of the dispatcher is entered here too: functions and kernels with prices of their own,
higher-order operators, and graphs that were compiled.
"""

import copy
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mfu_sdk.counting import flex, functions, launches, registry, traffic
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.compiled import CompiledCall
from mfu_sdk.counting.cuda_graphs import Captured
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.frames import only_infers_shapes
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.place import ELSEWHERE, NOT_OURS, Place, Places
from mfu_sdk.counting.prices import Prices, arithmetic, key_of, name_of, priced_or_free
from mfu_sdk.counting.region import Region
from mfu_sdk.counting.registry import Rule
from mfu_sdk.counting.reruns import Rerun
from mfu_sdk.counting.tally import Line, Priced, Stage, Tally
from mfu_sdk.records import Convention, Count

# Products of as many rows as tokens were routed, which compiled code calls as they are.
_ROUTED: Final = frozenset({"aten::_grouped_mm", "aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2"})


class Books:
    """The books of one counting mode, safe for threads; each thread beside the first has its own view of them."""

    def __init__(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> None:
        self.places = Places(model, others, self._ran_again)
        # By thread: how often what is still to come from a compiled graph that runs, and where that is.
        self.late: dict[int, tuple[Counter[str], Place]] = {}
        self._convention: Convention = convention
        # Entered again by the thread that holds it where a finaliser or a user's formula runs operators of its own.
        self._lock = threading.RLock()
        self._masks = Masks()
        self._prices = Prices(self._lock)
        self._tally = Tally(convention)
        self.outside: set[str] = set()

    def in_thread(self, nowhere: str, stage: Stage, *, every_node: bool) -> "Books":
        """The same books, for another thread (`Places.in_thread`)."""
        other = copy.copy(self)
        other.places = self.places.in_thread(nowhere, stage, every_node=every_node)
        return other

    def follow(self, first: "Books") -> None:
        """Begin again from nothing, as the first thread's books have."""
        self._tally, self.outside = first._tally, first.outside

    def unlock(self) -> None:
        """In a process that was forked: no thread that could hold the lock has come along."""
        self._lock = threading.RLock()
        self._prices.lock = self._lock

    def begin(self) -> None:
        """Counting starts."""
        self.places.begin()
        self._prices.begin()

    def end(self) -> None:
        """Counting stops: let go of all that belongs to the program."""
        with self._lock:
            self.places.end()
            self._masks.clear()
            self.late.clear()

    def clear(self) -> None:
        """Begin again from nothing."""
        with self._lock:
            self.places.clear()
            self._masks.clear()
            # What another thread's last operator of an earlier count still enters is not this count's.
            self._tally = Tally(self._convention)
            self.outside = set()

    def count(self) -> Count:
        """What was entered so far."""
        with self._lock:
            return self._tally.count()

    @property
    def has_work(self) -> bool:
        """Whether anything that was entered cost FLOPs."""
        with self._lock:
            return self._tally.has_work

    def calls(self) -> dict[tuple[Priced, str, Stage], int]:
        """The kinds of calls entered so far, with their module, stage and number."""
        with self._lock:
            return dict(self._tally.calls)

    def watch(self, rule: Rule, call: Call) -> None:
        """Learn what a view or another free operator does to a mask."""
        with self._lock:
            self._masks.observe(rule.name, call, None)

    def enter(
        self,
        rule: Rule,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        place: Place,
        *,
        fused: bool = False,
    ) -> None:
        """Enter one call of an operator that has run at `place`; `fused`: inside of a compiled kernel."""
        module, stage, regions = place
        if regions and self.covered(regions, module, stage):
            return
        kind = rule.kind
        if kind == "higher":
            self._count_higher_order(rule, Call(func, args, kwargs, result), place, fused=fused)
            return
        key = key_of(rule, func, args, kwargs) if rule.by_shapes else None
        priced = None
        try:
            priced = self._prices.known.get(key)
        except TypeError:
            # Sizes with symbols in them have no hash.
            key = None
        if _is_fake(result) and only_infers_shapes():
            return
        if priced is None:
            priced = self._prices.price(rule, Call(func, args, kwargs, result), key, self._masks)
        with self._lock:
            self._tally.calls[priced, module, stage] += 1
        line = self._keep(priced, place) if regions else None
        if rule.watched and stage != "optimizer":
            with self._lock:
                product = None
                if priced.known and rule.price is not None and rule.price.dense:
                    product = partial(self._tally.reprice, line or Line(priced, module, stage))
                self._masks.observe(rule.name, Call(func, args, kwargs, result), product)
                self._tally.bound()

    def _add(self, priced: Priced, place: Place) -> None:
        with self._lock:
            self._tally.calls[priced, place[0], place[1]] += 1
        self._keep(priced, place)

    def _keep(self, priced: Priced, place: Place) -> Line | None:
        """Remember what may yet prove to be a rerun."""
        module, stage, regions = place
        if not regions or not isinstance(regions[0], Rerun):
            return None
        line = Line(priced, module, stage)
        regions[0].entered.append(line)
        return line

    def _ran_again(self, rerun: Rerun) -> None:
        with self._lock:
            for line in rerun.entered:
                self._tally.was_recomputed(line)
        rerun.entered.clear()

    def covered(self, regions: Sequence[Region | Rerun], module: str, stage: Stage) -> bool:
        """Whether the operator runs beneath a priced function, the outermost that has a price for this call.

        The first operator of a call charges the function's price.
        """
        for region in regions:
            if isinstance(region, Rerun):
                continue
            if not region.charged:
                region.charged = True
                # The formula may be the user's: it is asked outside of the lock.
                self._add(self._charge(region), (module, stage, tuple(regions)))
            if region.cost is not None:
                return True
        return False

    def _charge(self, region: Region) -> Priced:
        if region.frame is None:
            return self._charge_backward(region)
        named = self.arguments(region.frame)
        region.dtype = arithmetic(named, region.price.operand)
        held = tensors([named[name] for name in functions.parameters(region.frame.f_code) if name in named])
        region.bytes_moved = sum(map(traffic.tensor_bytes, held))
        region.cost = _cost_of(region.price, named)
        if region.cost is None:
            return Priced(region.name, region.dtype, FREE, region.bytes_moved, known=False)
        if region.cost.backward is not None:
            self.places.await_backward(region)
        return Priced(region.name, region.dtype, region.cost.forward, region.bytes_moved)

    def arguments(self, frame: FrameType) -> Mapping[str, Any]:
        """The arguments of the call of a priced function that `frame` is."""
        return functions.arguments(frame)

    def _charge_backward(self, region: Region) -> Priced:
        assert region.cost is not None
        assert region.cost.backward is not None
        needs, region.node = tuple(region.node.needs_input_grad), None
        backward = region.cost.backward
        cost, known = priced_or_free(lambda: backward(needs))
        if not known:
            region.cost = None
        # It reads what the forward read and the gradient, and writes gradients of the same sizes.
        return Priced(region.name, region.dtype, cost, 2 * region.bytes_moved, known)

    def _count_higher_order(self, rule: Rule, call: Call, place: Place, *, fused: bool) -> None:
        """A higher-order operator that is no control flow is a black box, but for those that are known."""
        launch = launches.of_wrapper(rule.name, call.kwargs)
        if launch is not None:
            self._count_launch(*launch, place)
            return
        held = [t for t in tensors((*call.args, *call.kwargs.values(), call.result)) if t.is_floating_point()]
        if not held:
            return
        cost, known = FREE, False
        name, formula = call.func._name, registry.ecosystem_entry(call.func)
        if name in flex.NAMES:
            with self._lock:
                cost, known = priced_or_free(
                    lambda: flex.price_flex(name, call.args, call.kwargs, self._masks, fused=fused)
                )
        elif formula is not None:
            theirs = formula
            cost, known = priced_or_free(
                lambda: Cost.plain(registry.checked(theirs(*call.args, **call.kwargs, out_val=call.result)))
            )
        self._add(Priced(rule.name, name_of(held[0]), cost, sum(map(traffic.tensor_bytes, held)), known), place)

    def ran_compiled(self, call: CompiledCall) -> bool:
        """A graph that Inductor compiled is about to run, in this thread, and this mode will not see inside of it.

        Returns whether it must all the same, for products whose sizes only their data tells (experts' rows).
        """
        module, stage, regions = self.places.now()
        if module in NOT_OURS:
            if module == ELSEWHERE:
                self.outside.add(call.name)
            return False
        if self.covered(regions, module, stage):
            return False
        if call.operations is None:
            self._unknown(call.name, call.inputs, module, stage)
            return False
        if call.backward and stage == "forward":
            stage = "backward"
        late: Counter[str] = Counter()
        for each in call.operations:
            at: Stage = "recompute" if each.again and stage == "backward" else stage
            rule = registry.rule(each.func)
            if not each.known:
                self._unknown(rule.name, tensors([*each.args, each.result]), module, at)
            elif rule.name in _ROUTED:
                late[rule.name] += 1
            elif rule.kind in ("free", "view"):
                # Fused: what it moves is entered below.
                with self._lock:
                    self._masks.observe(rule.name, Call(each.func, each.args, each.kwargs, each.result), None)
            else:
                self.enter(rule, each.func, each.args, each.kwargs, each.result, (module, at, regions), fused=True)
        for name, moved, again in call.moved:
            self.moves(name, moved, module, "recompute" if again and stage == "backward" else stage)
        if late:
            self.late[threading.get_ident()] = late, (module, stage, ())
        return bool(late)

    def moves(self, name: str, moved: int, module: str, stage: Stage) -> None:
        """Enter bytes that an operator of a fused chain moves; it has no FLOPs."""
        if moved:
            with self._lock:
                # One object for all calls that are alike, as the tally tells them apart by identity.
                priced = self._prices.known.setdefault(("moved", name, moved), Priced(name, "none", FREE, moved))
                self._tally.calls[priced, module, stage] += 1

    def seen_late(self, rule: Rule, call: Call) -> None:
        """An operator that a compiled graph has called: one of those waited for, or already counted."""
        late, place = self.late[threading.get_ident()]
        if late[rule.name] > 0:
            late[rule.name] -= 1
            self.enter(rule, call.func, tuple(call.args), call.kwargs, call.result, place)

    def left_compiled(self) -> None:
        """A compiled graph has run; what was waited for and did not come ran in a kernel of its own."""
        late, (module, stage, _) = self.late.pop(threading.get_ident(), (Counter[str](), ("", "forward", ())))
        for name in late.elements():
            self._unknown(name, (), module, stage)

    def _unknown(self, name: str, held: Iterable[Tensor], module: str, stage: Stage) -> None:
        priced = Priced(name, "none", FREE, sum(map(traffic.tensor_bytes, held)), known=False)
        with self._lock:
            self._tally.calls[priced, module, stage] += 1

    def replayed(self, captured: Captured | None) -> None:
        """A CUDA graph was replayed, in this thread; `captured` is what it holds, None where nobody has seen it made.

        Its stages are those of the capture, but in a backward nothing is forward, and an optimizer's is all its own.
        """
        module, stage, regions = self.places.now()
        # What a compiled graph replays is counted by its text.
        if threading.get_ident() in self.late or self.covered(regions, module, stage):
            return
        if module in NOT_OURS:
            if module == ELSEWHERE:
                self.outside.add("cuda::graph_replay")
            return
        if captured is None:
            priced = Priced("cuda::graph_replay", "none", FREE, 0, known=False, sized=False)
            captured = {(priced, module, stage): 1}
        with self._lock:
            for (priced, inner, made), calls in captured.items():
                at = made if stage == "forward" or (stage == "backward" and made != "forward") else stage
                self._tally.calls[priced, module or inner, at] += calls

    def launched(self, kernel: Any, named: Mapping[str, Any]) -> None:
        """A Triton kernel was launched from Python, in this thread."""
        module, stage, regions = self.places.now()
        if module == ELSEWHERE:
            self.outside.add(f"triton::{launches.name_of(kernel)}")
        elif module not in NOT_OURS and not self.covered(regions, module, stage):
            self._count_launch(kernel, named, (module, stage, regions))

    def _count_launch(self, kernel: Any, named: Mapping[str, Any], place: Place) -> None:
        name = launches.name_of(kernel)
        held = list(tensors(list(named.values())))
        price, formula = functions.of_kernel(name), registry.ecosystem_entry(kernel)
        cost, known = FREE, not any(tensor.is_floating_point() for tensor in held)
        dtype = arithmetic(named, "")
        if price is not None:
            found = price
            cost, known = priced_or_free(lambda: found.formula(named))
            dtype = arithmetic(named, price.operand)
        elif formula is not None:
            # torch asks with the arguments of its operator for a kernel's launch.
            theirs, asked = formula, {"kernel_idx": None, "constant_args_idx": None, "grid": None, "kwargs": named}
            cost, known = priced_or_free(lambda: Cost.plain(registry.checked(theirs(**asked, out_val=None))))
        moved = sum(map(traffic.tensor_bytes, held))
        self._add(Priced(f"triton::{name}", dtype, cost, moved, known), place)


def _is_fake(result: Any) -> bool:
    if type(result) is tuple and result:
        result = result[0]
    return isinstance(result, FakeTensor)


def _cost_of(price: functions.FunctionPrice, named: Mapping[str, Any]) -> functions.FunctionCost | None:
    try:
        return price.formula(named)
    except Exception:  # noqa: BLE001 - a formula, which may be the user's, costs coverage and nothing else
        return None
