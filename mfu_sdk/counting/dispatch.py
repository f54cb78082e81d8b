"""The counting mode: sees every operator that runs, and counts it.

It is costly (tens of microseconds an operator), so a run counts few steps and looks the others up (`plan`).
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final

from mfu_sdk.errors import MissingDependencyError
from mfu_sdk.guard import shield
from mfu_sdk.records import Convention, Count

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingDependencyError("torch is not installed: counting runs under it; pip install torch") from error

from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import mode_stack, registry, traffic
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.place import Places, only_infers_shapes
from mfu_sdk.counting.precision import convolutions_allow_tf32, products_allow_tf32
from mfu_sdk.counting.tally import Line, Tally

_aten = torch.ops.aten
# Tensor subclasses with sizes of their own (nested tensors) are asked for these; the answer is theirs.
_METADATA: Final = frozenset(
    {
        _aten.dim.default,
        _aten.is_contiguous.default,
        _aten.is_contiguous.memory_format,
        _aten.is_non_overlapping_and_dense.default,
        _aten.is_strides_like_format.default,
        _aten.numel.default,
        _aten.size.default,
        _aten.storage_offset.default,
        _aten.stride.default,
        _aten.sym_is_contiguous.default,
        _aten.sym_numel.default,
        _aten.sym_size.default,
        _aten.sym_storage_offset.default,
        _aten.sym_stride.default,
        torch.ops.prim.layout.default,
    }
)


# These only run the functions that they are given, which run under this mode again.
_CONTROL_FLOW: Final = frozenset(
    {
        "associative_scan",
        "cond",
        "invoke_subgraph",
        "map_impl",
        "scan",
        "tag_activation_checkpoint",
        "while_loop",
        "wrap",
    }
)


class CountingMode(TorchDispatchMode):
    """Counts the operators that run while it is on, in this thread and in the autograd engine's for it.

    Either a context manager, any number of times and nested in itself, or `start()` and `stop()`, which may lie in
    different hooks. `model` gives modules their names; operators of other modules are counted too. Under
    `torch.compile` it sees what the compiled code calls outside of its own kernels, and leaves compilation on.
    Wrapper tensors (DTensor, nested, quantized) are counted by the operators that they run on what they wrap, so a
    sharded tensor counts its local shard.
    """

    supports_higher_order_operators = True

    def __init__(self, model: torch.nn.Module | None = None, *, convention: Convention = "exact") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._convention: Convention = convention
        self._lock = threading.Lock()
        self._depth = 0
        self._places = Places(model)
        self._masks = Masks()
        self._tally = Tally(convention)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave `torch.compile` on: an ordinary mode would keep what is compiled under it eager for good."""
        return True

    def start(self) -> None:
        """Count from here on. The mode lies beneath all others, so no `with` of the user's can meet it by mistake."""
        if self._depth == 0 and not mode_stack.holds(self):
            mode_stack.insert(self)
        self._depth += 1

    def stop(self) -> None:
        """Undo one `start`. Other modes stay as they are; called in another thread, it leaves the stack later.

        Until the thread that started calls `start` or `stop` again, the mode is then transparent.
        """
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            mode_stack.remove(self)
            with self._lock:
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
        kwargs = kwargs or {}
        if func in _METADATA or any(map(_wraps, types)):
            # The subclass unwraps; what it runs comes back here.
            return NotImplemented
        if isinstance(func, HigherOrderOperator):
            if func._name in _CONTROL_FLOW and self._depth:
                args = tuple(map(self._seen_again, args))
            result = func(*args, **kwargs)
            with shield("count"):
                self._count_higher_order(func, args, result)
            return result
        if self._depth == 0 or _capturing():
            return func(*args, **kwargs)
        if _decomposes(func):
            with self._again():
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        with shield("count"):
            self._count(Call(func, args, kwargs, result))
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
        if not callable(value) or isinstance(value, (torch.Tensor, type)):
            return value

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return value(*args, **kwargs)

        return run

    def _count(self, call: Call) -> None:
        rule = registry.rule(call.func)
        if rule.kind == "view" or (any(map(_is_fake, tensors(call.result))) and only_infers_shapes()):
            return
        sent = traffic.handed_bytes(call)
        if sent is not None:
            with self._lock:
                self._tally.comm_bytes[sent[0]] += sent[1]
            return
        place = self._places.now()
        cost, known = FREE, True
        if rule.kind == "priced" or rule.kind == "users":
            cost, known = self._priced(lambda: registry.price(call, rule, self._masks))
        elif rule.kind == "unknown":
            formula = registry.ecosystem_formula(call.func)
            if formula is not None:
                found = formula
                cost, known = self._priced(lambda: Cost.plain(found(call)))
            else:
                known = not traffic.touches_floats(call)
        dtype = _dtype(call, rule.price.operand if rule.price else None)
        line = Line(place, rule.name, dtype, cost)
        with self._lock:
            tally = self._tally
            if not known:
                tally.uncounted[rule.name, place.module] += 1
            elif cost is not FREE:
                tally.add(line)
            tally.executed(rule.name, dtype, cost.hardware, traffic.moved_bytes(call), known=known)
            dense = rule.price is not None and rule.price.dense and known
            self._masks.observe(rule.name, call, partial(tally.reprice, line) if dense else None)

    def _priced(self, price: Callable[[], Cost]) -> tuple[Cost, bool]:
        try:
            return price(), True
        except Exception:  # noqa: BLE001 - a formula, which may be the user's, costs coverage and nothing else
            return FREE, False

    def _count_higher_order(self, func: HigherOrderOperator, args: Sequence[Any], result: Any) -> None:
        """Control flow counts as what it ran; any other (flex attention, a Triton kernel) is a black box."""
        if self._depth == 0 or func._name in _CONTROL_FLOW:
            return
        if any(tensor.is_floating_point() for tensor in tensors((*args, result))):
            place = self._places.now()
            with self._lock:
                self._tally.uncounted[f"higher_order::{func._name}", place.module] += 1


def count(fn: Callable[..., Any], *args: Any, convention: Convention = "exact", **kwargs: Any) -> Count:
    """Run `fn(*args, **kwargs)` once and count what it ran; `fn` is a function or a module, its result is dropped.

    What `fn` raises passes unchanged. Call `backward()` inside of `fn` to count it too.
    """
    mode = CountingMode(fn if isinstance(fn, torch.nn.Module) else None, convention=convention)
    with mode:
        fn(*args, **kwargs)
    return mode.result()


def _is_fake(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, FakeTensor)


@lru_cache(maxsize=256)
def _wraps(kind: type) -> bool:
    """Whether tensors of this class run operators of their own on what they wrap."""
    if issubclass(kind, FakeTensor) or kind in (torch.Tensor, torch.nn.Parameter):
        return False
    return kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # type: ignore[attr-defined]


@lru_cache(maxsize=4096)
def _decomposes(func: torch._ops.OpOverload) -> bool:
    """Whether `func` is made of others; in inference mode it arrives whole."""
    if func.namespace == "prim":
        # These have no dispatcher entry to ask about.
        return False
    composite: bool = torch._C._dispatch_has_kernel_for_dispatch_key(_qualified(func), "CompositeImplicitAutograd")
    return composite and registry.rule(func).kind == "unknown"


def _qualified(func: torch._ops.OpOverload) -> str:
    name = func._schema.name
    return f"{name}.{func._schema.overload_name}" if func._schema.overload_name else name


def _capturing() -> bool:
    """Whether a CUDA graph is being captured: its warm-up was counted, and nothing may be read now."""
    started = torch.cuda.is_initialized()
    return bool(started and torch.cuda.is_current_stream_capturing())


def _dtype(call: Call, operand: str | None) -> str:
    """The dtype of an operator's arithmetic: that of `operand`, "tf32" where torch lets CUDA use it for float32."""
    value = call[operand] if operand is not None else None
    tensor = next(tensors(value), None) if value is not None else next(call.inputs(), next(tensors(call.result), None))
    if tensor is None:
        return "none"
    if operand is not None and tensor.dtype is torch.float32 and tensor.is_cuda and _allows_tf32(call.func):
        return "tf32"
    return str(tensor.dtype).removeprefix("torch.")


def _allows_tf32(func: torch._ops.OpOverload) -> bool:
    name = func._schema.name
    if "attention" in name or torch.cuda.get_device_capability() < (8, 0):
        return False
    return convolutions_allow_tf32() if "conv" in name or "rnn" in name else products_allow_tf32()
