"""The counting mode: sees every operator that runs, and counts it.

Its price is a few microseconds an operator, so a run counts few steps and looks the others up (`plan`). What a call
costs is worked out once for its operator and shapes, and is one addition to a table from then on.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, cast

from mfu_sdk.errors import MissingDependencyError
from mfu_sdk.guard import contained, shield
from mfu_sdk.records import Convention, Count

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingDependencyError("torch is not installed: counting runs under it; pip install torch") from error

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import flex, functions, launches, mode_stack, registry, traffic
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.compiled import CompiledCall, CompiledRegions
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.place import OTHERS, Place, Places, Region, Stage, only_infers_shapes
from mfu_sdk.counting.precision import convolutions_allow_tf32, products_allow_tf32
from mfu_sdk.counting.registry import RULES, Rule
from mfu_sdk.counting.tally import Line, Priced, Tally

_MOST_PRICED: Final = 16_384
"""Kinds of calls whose price is remembered."""
_NO_KEYWORDS: Final[Mapping[str, Any]] = {}
_CUDA: Final = torch.cuda.is_available()
# Products of as many rows as tokens were routed, which compiled code calls as they are.
_ROUTED: Final = frozenset({"aten::_grouped_mm", "aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2"})
# Values of these dtypes may be lengths or choices, on which a price can depend.
_INDICES: Final = frozenset({torch.bool, torch.int16, torch.int32, torch.int64})


class CountingMode(TorchDispatchMode):
    """Counts the operators that run while it is on, in this thread and in the autograd engine's for it.

    Either a context manager, any number of times and nested in itself, or `start()` and `stop()`, which may lie in
    different hooks. `model` gives modules their names; operators of other modules are counted too, but for those of
    the models that `others` returns. What `torch.compile` has compiled counts by its graph, and stays compiled.
    Wrapper tensors (DTensor, nested, quantized) are counted by the operators that they run on what they wrap, so a
    sharded tensor counts its local shard.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        convention: Convention = "exact",
        others: Callable[[], Collection[torch.nn.Module]] = tuple,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._convention: Convention = convention
        self._lock = threading.Lock()
        self._depth = 0
        self._places = Places(model, others)
        self._masks = Masks()
        self._tally = Tally(convention)
        self._compiled = CompiledRegions(self, self._ran_compiled, self._left_compiled)
        # By thread: how often what is still to come from a compiled graph that runs, and where that is.
        self._late: dict[int, tuple[Counter[str], Place]] = {}
        self._prices: dict[Any, Priced] = {}
        self._rules_seen = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave `torch.compile` on: an ordinary mode would keep what is compiled under it eager for good."""
        return True

    def start(self) -> None:
        """Count from here on. The mode lies beneath all others, so no `with` of the user's can meet it by mistake."""
        if self._depth == 0:
            with shield("count"):
                self._places.begin()
                if self._rules_seen != registry.changes():
                    self._prices.clear()
                    self._rules_seen = registry.changes()
                launches.watch(self._launched)
                self._compiled.start()
            if not mode_stack.holds(self):
                mode_stack.insert(self)
        self._depth += 1

    def stop(self) -> None:
        """Undo one `start`. Other modes stay as they are; called in another thread, it leaves the stack later.

        Until the thread that started calls `start` or `stop` again, the mode is then transparent.
        """
        was_on = self._depth > 0
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            mode_stack.remove(self)
            if was_on:
                launches.unwatch(self._launched)
                with shield("count"):
                    self._compiled.stop()
            with self._lock:
                self._places.end()
                self._masks.clear()

    def __enter__(self) -> "CountingMode":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def result(self) -> Count:
        """What has run so far, since the last `reset`."""
        with self._lock:
            return self._tally.count()

    def reset(self) -> None:
        """Begin again from nothing."""
        with self._lock:
            self._places.clear()
            self._masks.clear()
            self._tally = Tally(self._convention)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, once and as it is; then count it."""
        if kwargs is None:
            kwargs = _NO_KEYWORDS
        rule = RULES.get(id(func)) or registry.rule(func)
        kind = rule.kind
        if kind == "subclass" or (types and any(map(_wraps, types))):
            # The subclass unwraps; what it runs comes back here.
            return NotImplemented
        if self._depth == 0 or (_CUDA and _capturing()):
            return func(*args, **kwargs)
        if kind == "view":
            result = func(*args, **kwargs)
            # Of a mask without data it is followed how it was made; one with data is read where it is used.
            if rule.watched and _lacks_data(result):
                with shield("count"), self._lock:
                    self._masks.observe(rule.name, Call(func, args, kwargs, result), None)
            return result
        if kind == "control":
            return func(*map(self._seen_again, args), **kwargs)
        if rule.decomposes and not any(map(_is_ragged, tensors((*args, *kwargs.values())))):
            with self._again():
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self._late and threading.get_ident() in self._late:
            result = func(*args, **kwargs)
            with shield("count"):
                self._seen_late(rule, Call(func, args, kwargs, result))
            return result
        # Before it runs: a function that has returned must not hold its tensors while the next operator allocates.
        place: Place | None = None
        try:
            place = self._places.now()
        except Exception as error:
            if not contained("count", error):
                raise
        result = func(*args, **kwargs)
        if place is None or place[0] == OTHERS:
            return result
        try:
            self._count(rule, func, args, kwargs, result, place)
        except Exception as error:
            if not contained("count", error):
                raise
        return result

    @contextmanager
    def _again(self) -> Iterator[None]:
        # While a mode handles an operator it is off; what a composite operator is made of should be seen.
        mode_stack.push(self)
        try:
            yield
        finally:
            mode_stack.pop()

    def _seen_again(self, value: Any) -> Any:
        """A branch or body that a control-flow operator will run, made to run under this mode."""
        if not callable(value) or isinstance(value, (Tensor, type)):
            return value

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return value(*args, **kwargs)

        return run

    def _count(
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
        module, stage, regions = place
        if regions and self._covered(regions, module, stage):
            return
        kind = rule.kind
        if kind == "higher":
            self._count_higher_order(rule, Call(func, args, kwargs, result), module, stage, fused=fused)
            return
        key = _key(rule, func, args, kwargs) if rule.by_shapes else None
        priced = None
        try:
            priced = self._prices.get(key)
        except TypeError:
            # Sizes with symbols in them have no hash.
            key = None
        if _is_fake(result) and only_infers_shapes():
            return
        if priced is None:
            priced = self._price(rule, Call(func, args, kwargs, result), key)
        with self._lock:
            self._tally.calls[priced, module, stage] += 1
        if rule.watched and stage != "optimizer":
            with self._lock:
                product = None
                if priced.known and rule.price is not None and rule.price.dense:
                    product = partial(self._tally.reprice, Line(priced, module, stage))
                self._masks.observe(rule.name, Call(func, args, kwargs, result), product)
                self._tally.bound()

    def _price(self, rule: Rule, call: Call, key: Any) -> Priced:
        """What a call costs, remembered under `key` where that says all that decides it."""
        sent = traffic.handed_bytes(call)
        if sent is not None:
            return self._remember(key, Priced(sent[0], "none", FREE, 0, sent=sent[1]))
        asked = _Asked(self._masks)
        cost, known = FREE, True
        if rule.kind == "priced" or rule.kind == "users":
            cost, known = _priced(lambda: registry.price(call, rule, cast(Masks, asked)))
        elif rule.kind == "unknown":
            formula = registry.ecosystem_formula(call.func)
            if formula is not None:
                found = formula
                cost, known = _priced(lambda: Cost.plain(found(call)))
            else:
                known = not traffic.touches_floats(call)
        if rule.price is not None and rule.price.dtype is not None:
            dtype = rule.price.dtype(call)
        else:
            dtype = _dtype(call, rule.price.operand if rule.price else None)
        priced = Priced(rule.name, dtype, cost, traffic.moved_bytes(call), known)
        return priced if asked.was_asked else self._remember(key, priced)

    def _remember(self, key: Any, priced: Priced) -> Priced:
        if key is not None:
            if len(self._prices) >= _MOST_PRICED:
                self._prices.clear()
            self._prices[key] = priced
        return priced

    # --- what is no single operator ----------------------------------------------------------------------------------

    def _covered(self, regions: Sequence[Region], module: str, stage: Stage) -> bool:
        """Whether the operator runs beneath a priced function, the outermost that has a price for this call.

        The first operator of a call charges the function's price.
        """
        for region in regions:
            if not region.charged:
                region.charged = True
                with self._lock:
                    self._tally.calls[self._charge(region), module, stage] += 1
            if region.cost is not None:
                return True
        return False

    def _charge(self, region: Region) -> Priced:
        if region.frame is None:
            return self._charge_backward(region)
        named = functions.arguments(region.frame)
        region.dtype = _arithmetic(named, region.price.operand)
        held = tensors([named[name] for name in functions.parameters(region.frame.f_code) if name in named])
        region.bytes_moved = sum(map(traffic.tensor_bytes, held))
        region.cost = _cost_of(region.price, named)
        if region.cost is None:
            return Priced(region.name, region.dtype, FREE, region.bytes_moved, known=False)
        if region.cost.backward is not None:
            self._places.await_backward(region)
        return Priced(region.name, region.dtype, region.cost.forward, region.bytes_moved)

    def _charge_backward(self, region: Region) -> Priced:
        assert region.cost is not None
        assert region.cost.backward is not None
        needs, region.node = tuple(region.node.needs_input_grad), None
        backward = region.cost.backward
        cost, known = _priced(lambda: backward(needs))
        if not known:
            region.cost = None
        # It reads what the forward read and the gradient, and writes gradients of the same sizes.
        return Priced(region.name, region.dtype, cost, 2 * region.bytes_moved, known)

    def _count_higher_order(self, rule: Rule, call: Call, module: str, stage: Stage, *, fused: bool) -> None:
        """A higher-order operator that is no control flow is a black box, but for those that are known."""
        launch = launches.of_wrapper(rule.name, call.kwargs)
        if launch is not None:
            self._count_launch(*launch, module, stage)
            return
        held = [t for t in tensors((*call.args, *call.kwargs.values(), call.result)) if t.is_floating_point()]
        if not held:
            return
        cost, known = FREE, False
        name, formula = call.func._name, registry.ecosystem_entry(call.func)
        if name in flex.NAMES:
            cost, known = _priced(lambda: flex.price_flex(name, call.args, call.kwargs, self._masks, fused=fused))
        elif formula is not None:
            theirs = formula
            cost, known = _priced(
                lambda: Cost.plain(registry.checked(theirs(*call.args, **call.kwargs, out_val=call.result)))
            )
        priced = Priced(rule.name, _name_of(held[0]), cost, sum(map(traffic.tensor_bytes, held)), known)
        with self._lock:
            self._tally.calls[priced, module, stage] += 1

    def _ran_compiled(self, call: CompiledCall) -> bool:
        """A graph that Inductor compiled is about to run, in this thread, and this mode will not see inside of it.

        Returns whether it must all the same, for products whose sizes only their data tells (experts' rows).
        """
        module, stage, regions = self._places.now()
        if module == OTHERS or self._covered(regions, module, stage):
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
                # Fused away: what moves is the products' operands.
                with self._lock:
                    self._masks.observe(rule.name, Call(each.func, each.args, each.kwargs, each.result), None)
            else:
                self._count(rule, each.func, each.args, each.kwargs, each.result, (module, at, ()), fused=True)
        if late:
            self._late[threading.get_ident()] = late, (module, stage, ())
        return bool(late)

    def _seen_late(self, rule: Rule, call: Call) -> None:
        """An operator that a compiled graph has called: one of those waited for, or already counted."""
        late, place = self._late[threading.get_ident()]
        if late[rule.name] > 0:
            late[rule.name] -= 1
            self._count(rule, call.func, tuple(call.args), call.kwargs, call.result, place)

    def _left_compiled(self) -> None:
        """A compiled graph has run; what was waited for and did not come ran in a kernel of its own."""
        late, (module, stage, _) = self._late.pop(threading.get_ident(), (Counter[str](), ("", "forward", ())))
        for name in late.elements():
            self._unknown(name, (), module, stage)

    def _unknown(self, name: str, held: Iterable[Tensor], module: str, stage: Stage) -> None:
        priced = Priced(name, "none", FREE, sum(map(traffic.tensor_bytes, held)), known=False)
        with self._lock:
            self._tally.calls[priced, module, stage] += 1

    def _launched(self, kernel: Any, named: Mapping[str, Any]) -> None:
        """A Triton kernel was launched from Python, in this thread, if this mode is on here."""
        # While an operator runs beneath this mode the mode is off: a kernel that it launches is the operator's.
        if self._depth == 0 or (_CUDA and _capturing()) or not mode_stack.holds(self):
            return
        module, stage, regions = self._places.now()
        if module != OTHERS and not self._covered(regions, module, stage):
            self._count_launch(kernel, named, module, stage)

    def _count_launch(self, kernel: Any, named: Mapping[str, Any], module: str, stage: Stage) -> None:
        name = launches.name_of(kernel)
        held = list(tensors(list(named.values())))
        price, formula = functions.of_kernel(name), registry.ecosystem_entry(kernel)
        cost, known = FREE, not any(tensor.is_floating_point() for tensor in held)
        dtype = _arithmetic(named, "")
        if price is not None:
            found = price
            cost, known = _priced(lambda: found.formula(named))
            dtype = _arithmetic(named, price.operand)
        elif formula is not None:
            # torch asks with the arguments of its operator for a kernel's launch.
            theirs, asked = formula, {"kernel_idx": None, "constant_args_idx": None, "grid": None, "kwargs": named}
            cost, known = _priced(lambda: Cost.plain(registry.checked(theirs(**asked, out_val=None))))
        moved = sum(map(traffic.tensor_bytes, held))
        with self._lock:
            self._tally.calls[Priced(f"triton::{name}", dtype, cost, moved, known), module, stage] += 1


class _Asked:
    """What is known about masks, and whether a formula asked for it: then its price is that of this call only."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self.was_asked = False

    def __getattr__(self, name: str) -> Any:
        self.was_asked = True
        return getattr(self._masks, name)


def count(fn: Callable[..., Any], *args: Any, convention: Convention = "exact", **kwargs: Any) -> Count:
    """Run `fn(*args, **kwargs)` once and count what it ran; `fn` is a function or a module, its result is dropped.

    What `fn` raises passes unchanged. Call `backward()` inside of `fn` to count it too.
    """
    mode = CountingMode(fn if isinstance(fn, torch.nn.Module) else None, convention=convention)
    with mode:
        fn(*args, **kwargs)
    return mode.result()


def _key(rule: Rule, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """All that decides what a call costs and moves, or None where that is more than shapes."""
    key: list[Any] = [id(func)]
    priced = rule.price is not None
    try:
        if not _describe(args, key, priced):
            return None
        if kwargs:
            key.append(tuple(kwargs))
            if not _describe(kwargs.values(), key, priced):
                return None
        if priced and _CUDA:
            first = next(tensors(args), None)
            key += (products_allow_tf32(), convolutions_allow_tf32(), first is not None and first.is_cuda)
    except RuntimeError:
        # A layout without strides.
        return None
    return tuple(key)


def _describe(values: Any, key: list[Any], priced: bool) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            dtype = value.dtype
            if priced and dtype in _INDICES:
                return False
            key += (value.shape, value.stride(), dtype)
        elif isinstance(value, (list, tuple)):
            key.append(len(value))
            if not _describe(value, key, priced):
                return False
        elif not isinstance(value, float):
            # No price hangs on a scale, a rate or a probability.
            key.append(value)
    return True


def _is_fake(result: Any) -> bool:
    if type(result) is tuple and result:
        result = result[0]
    return isinstance(result, FakeTensor)


def _is_ragged(tensor: Tensor) -> bool:
    # What a composite operator is made of has no meaning for nested tensors of the older kind.
    return tensor.is_nested and tensor.layout is torch.strided


def _lacks_data(result: Any) -> bool:
    if isinstance(result, (list, tuple)) and result:
        result = result[0]
    return isinstance(result, FakeTensor) or (isinstance(result, Tensor) and result.is_meta)


def _priced(price: Callable[[], Cost]) -> tuple[Cost, bool]:
    try:
        return price(), True
    except Exception:  # noqa: BLE001 - a formula, which may be the user's, costs coverage and nothing else
        return FREE, False


def _cost_of(price: functions.FunctionPrice, named: Mapping[str, Any]) -> functions.FunctionCost | None:
    try:
        return price.formula(named)
    except Exception:  # noqa: BLE001 - a formula, which may be the user's, costs coverage and nothing else
        return None


@lru_cache(maxsize=256)
def _wraps(kind: type) -> bool:
    """Whether tensors of this class run operators of their own on what they wrap."""
    if issubclass(kind, FakeTensor) or kind in (torch.Tensor, torch.nn.Parameter):
        return False
    return kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # type: ignore[attr-defined]


def _capturing() -> bool:
    """Whether a CUDA graph is being captured: its warm-up was counted, and nothing may be read now."""
    started = torch.cuda.is_initialized()
    return bool(started and torch.cuda.is_current_stream_capturing())


def _dtype(call: Call, operand: str | None) -> str:
    """The dtype of an operator's arithmetic: that of `operand`, "tf32" where torch lets CUDA use it for float32."""
    value = call.get(operand) if operand is not None else None
    tensor = next(tensors(value), None) if value is not None else next(call.inputs(), next(tensors(call.result), None))
    if tensor is not None and operand is not None and tensor.dtype is torch.float32 and tensor.is_cuda:
        return "tf32" if _allows_tf32(call.func) else "float32"
    return _name_of(tensor)


def _name_of(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tensor.dtype).removeprefix("torch.")


def _arithmetic(named: Mapping[str, Any], operand: str) -> str:
    """The dtype of a function's arithmetic: its operand's, else that of the first floating-point tensor."""
    held = list(tensors(named.get(operand))) or [t for t in tensors(list(named.values())) if t.is_floating_point()]
    return _name_of(next(iter(held), None))


def _allows_tf32(func: torch._ops.OpOverload) -> bool:
    name = func._schema.name
    if "attention" in name or torch.cuda.get_device_capability() < (8, 0):
        return False
    return convolutions_allow_tf32() if "conv" in name or "rnn" in name else products_allow_tf32()
