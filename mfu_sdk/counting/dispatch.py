"""The counting mode: sees every operator that runs, and counts it.

Its price is a few microseconds an operator, so a run counts few steps and looks the others up (`plan`). What a call
costs is worked out once for its operator and shapes, and is one addition to a table from then on.
"""

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, Final

from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.guard import contained, shield, warn_once
from mfu_sdk.records import Convention, Count

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingDependencyError("torch is not installed: counting runs under it; pip install torch") from error

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import cuda_graphs, launches, mode_stack, registry
from mfu_sdk.counting.books import Books
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.compiled import CompiledRegions
from mfu_sdk.counting.place import OTHERS, Place
from mfu_sdk.counting.registry import RULES

_NO_KEYWORDS: Final[Mapping[str, Any]] = {}
_CUDA: Final = torch.cuda.is_available()
_KEEPS_COMPILATION: Final = hasattr(TorchDispatchMode, "ignore_compile_internals")


class CountingMode(TorchDispatchMode):
    """Counts the operators that run while it is on, in this thread and in the autograd engine's for it.

    Either a context manager, any number of times and nested in itself, or `start()` and `stop()`, which may lie in
    different hooks. `model` gives modules their names; operators of other modules are counted too, but for those of
    the models that `others` returns. What `torch.compile` has compiled counts by its graph, and stays compiled.
    Wrapper tensors (DTensor, nested, quantized) are counted by the operators that they run on what they wrap, so a
    sharded tensor counts its local shard.
    """

    supports_higher_order_operators = True
    reads_data = True
    """Whether tensors are read: then nothing can be counted while a CUDA graph is captured."""

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        convention: Convention = "exact",
        others: Callable[[], Collection[torch.nn.Module]] = tuple,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._depth = 0
        self._books = self._open(model, convention, others)
        self._compiled = CompiledRegions(
            self, self._books.ran_compiled, self._books.left_compiled, reads_data=self.reads_data
        )

    def _open(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> Books:
        return Books(model, convention, others)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave `torch.compile` on: an ordinary mode would keep what is compiled under it eager for good."""
        return True

    def start(self) -> None:
        """Count from here on. The mode lies beneath all others, so no `with` of the user's can meet it by mistake."""
        if self._depth == 0:
            with shield("count"):
                self._books.begin()
                if not _KEEPS_COMPILATION and "torch._dynamo" in sys.modules:
                    warn_once(
                        "count",
                        "this version of torch leaves eager what it first compiles while counting; call compiled "
                        "functions once before, or use torch 2.13",
                    )
                launches.watch(self._launched)
                if self.reads_data:
                    cuda_graphs.watch(self._replayed)
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
                cuda_graphs.unwatch(self._replayed)
                with shield("count"):
                    self._compiled.stop()
            self._books.end()

    def __enter__(self) -> "CountingMode":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def result(self) -> Count:
        """What has run so far, since the last `reset`."""
        return self._books.count()

    def reset(self) -> None:
        """Begin again from nothing."""
        self._books.clear()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, once and as it is; then count it."""
        if kwargs is None:
            kwargs = _NO_KEYWORDS
        rule = RULES.get(id(func))
        if rule is None:
            try:
                rule = registry.rule(func)
            except Exception as error:
                if not contained("count", error):
                    raise
                return func(*args, **kwargs)
        kind = rule.kind
        if kind == "subclass" or (types and any(map(_wraps, types))):
            # The subclass unwraps; what it runs comes back here.
            return NotImplemented
        if self._depth == 0 or (_CUDA and self._steps_aside()):
            return func(*args, **kwargs)
        if kind == "view":
            result = func(*args, **kwargs)
            # Of a mask without data it is followed how it was made; one with data is read where it is used.
            if rule.watched and (not self.reads_data or _lacks_data(result)):
                with shield("count"):
                    self._books.watch(rule, Call(func, args, kwargs, result))
            return result
        if kind == "control":
            return func(*map(self._seen_again, args), **kwargs)
        if rule.decomposes and not any(map(_is_ragged, tensors((*args, *kwargs.values())))):
            with self._again():
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        books = self._books
        if books.late and threading.get_ident() in books.late:
            result = func(*args, **kwargs)
            with shield("count"):
                books.seen_late(rule, Call(func, args, kwargs, result))
            return result
        # Before it runs: a function that has returned must not hold its tensors while the next operator allocates.
        place: Place | None = None
        try:
            place = books.places.now()
        except Exception as error:
            if not contained("count", error):
                raise
        result = func(*args, **kwargs)
        if place is None or place[0] == OTHERS:
            return result
        try:
            books.enter(rule, func, args, kwargs, result, place)
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

    def _launched(self, kernel: Any, named: Mapping[str, Any]) -> None:
        # While an operator runs beneath this mode the mode is off: a kernel that it launches is the operator's.
        if self._depth and not (_CUDA and self._steps_aside()) and mode_stack.holds(self):
            self._books.launched(kernel, named)

    def _replayed(self, captured: cuda_graphs.Captured | None) -> None:
        if self._depth and mode_stack.holds(self):
            self._books.replayed(captured)

    def _steps_aside(self) -> bool:
        return self.reads_data and cuda_graphs.is_capturing()


def count(fn: Callable[..., Any], *args: Any, convention: Convention = "exact", **kwargs: Any) -> Count:
    """Run `fn(*args, **kwargs)` once and count what it ran; `fn` is a function or a module, its result is dropped.

    What `fn` raises passes unchanged. Call `backward()` inside of `fn` to count it too. Work that `fn` does in other
    threads is not seen: modes are a thread's own. Raises `ConfigurationError` for a convention that is neither.
    """
    if convention not in ("exact", "full"):
        raise ConfigurationError(f"convention={convention!r}: must be exact or full (see docs/explanation/mfu.md)")
    mode = CountingMode(fn if isinstance(fn, torch.nn.Module) else None, convention=convention)
    with mode:
        fn(*args, **kwargs)
    return mode.result()


def _is_ragged(tensor: Tensor) -> bool:
    # What a composite operator is made of has no meaning for nested tensors of the older kind.
    return tensor.is_nested and tensor.layout is torch.strided


def _lacks_data(result: Any) -> bool:
    if isinstance(result, (list, tuple)) and result:
        result = result[0]
    return isinstance(result, FakeTensor) or (isinstance(result, Tensor) and result.is_meta)


@lru_cache(maxsize=256)
def _wraps(kind: type) -> bool:
    """Whether tensors of this class run operators of their own on what they wrap."""
    if issubclass(kind, FakeTensor) or kind in (torch.Tensor, torch.nn.Parameter):
        return False
    return kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # type: ignore[attr-defined]
