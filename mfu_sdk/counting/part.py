"""What one thread runs of a count: sees every operator of the thread that it is on, and enters it into the books."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import cuda_graphs, mode_stack, registry
from mfu_sdk.counting.books import Books
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.compiled import CompiledRegions
from mfu_sdk.counting.place import ELSEWHERE, NOT_OURS, Place
from mfu_sdk.counting.registry import RULES
from mfu_sdk.guard import contained, shield

if TYPE_CHECKING:
    from mfu_sdk.counting.dispatch import CountingMode

_NO_KEYWORDS: Final[Mapping[str, Any]] = {}
_CUDA: Final = torch.cuda.is_available()


class Part(TorchDispatchMode):
    """What one thread runs of a count; transparent while its depth is 0."""

    supports_higher_order_operators = True
    reads_data = True
    """Whether tensors are read: then nothing can be counted while a CUDA graph is captured."""

    def __init__(self, root: "CountingMode | None", books: Books) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._depth = 0
        self._root = root
        self._books = books
        self._compiled = CompiledRegions(self, books.ran_compiled, books.left_compiled, reads_data=self.reads_data)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave `torch.compile` on: an ordinary mode would keep what is compiled under it eager for good."""
        return True

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
        if kind == "subclass" or (types and any(map(wraps, types))):
            # The subclass unwraps; what it runs comes back here.
            return NotImplemented
        if self._depth == 0 or (_CUDA and self.steps_aside()):
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
        if place is None or place[0] in NOT_OURS:
            if place is not None and place[0] == ELSEWHERE and kind not in ("free", "view"):
                books.outside.add(rule.name)
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

    def steps_aside(self) -> bool:
        """Whether a CUDA graph is being captured, of which nothing may be read."""
        return self.reads_data and cuda_graphs.is_capturing()


def _is_ragged(tensor: Tensor) -> bool:
    # What a composite operator is made of has no meaning for nested tensors of the older kind.
    return tensor.is_nested and tensor.layout is torch.strided


def _lacks_data(result: Any) -> bool:
    if isinstance(result, (list, tuple)) and result:
        result = result[0]
    return isinstance(result, FakeTensor) or (isinstance(result, Tensor) and result.is_meta)


@lru_cache(maxsize=256)
def wraps(kind: type) -> bool:
    """Whether tensors of this class run operators of their own on what they wrap."""
    if issubclass(kind, FakeTensor) or kind in (torch.Tensor, torch.nn.Parameter):
        return False
    return kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # type: ignore[attr-defined]
