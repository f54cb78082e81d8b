"""Notes what a CUDA graph captures, by shapes alone: every tensor is stood in for by one without data.

While a stream is captured nothing may be read from the device: one value that is asked for ends the capture with an
error. What a price needs the data of (a mask, packed lengths, groups' ends) is therefore not known here, and uncounted.
"""

from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from mfu_sdk.counting.books import Books
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.cuda_graphs import Captured
from mfu_sdk.counting.dataless import memory, part
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.masks import Masks, Reprice
from mfu_sdk.counting.origins import lacks_data
from mfu_sdk.counting.place import Place
from mfu_sdk.counting.registry import Rule
from mfu_sdk.errors import MfuError
from mfu_sdk.records import Convention


class RecordingMode(CountingMode):
    """The mode that is on while a graph is captured, in the capturing thread and the autograd engine's for it."""

    reads_data = False

    def captured(self) -> Captured:
        """The kinds of calls that were captured, with their module, stage and number."""
        return self._books.calls()

    def _open(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> Books:
        return _RecordingBooks(model, convention, others)


class _RecordingBooks(Books):
    """Books whose formulas see sizes, dtypes and devices, and no data."""

    def __init__(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> None:
        super().__init__(model, convention, others)
        self._masks: _UnreadMasks = _UnreadMasks()
        self._stand_ins = WeakIdKeyDictionary()
        # By storage, so that a view of scores or of a mask is known for one.
        self._bases: dict[int, tuple[StorageWeakRef, Tensor]] = {}

    def watch(self, rule: Rule, call: Call) -> None:
        seen = Call(call.func, self._without(call.args), self._without(call.kwargs), self._without(call.result))
        super().watch(rule, seen)

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
        args, kwargs, result = self._without(args), self._without(kwargs), self._without(result)
        unread = self._masks.unread
        super().enter(rule, func, args, kwargs, result, place, fused=fused)
        if self._masks.unread != unread:
            self._unknown(rule.name, tensors([*args, *kwargs.values(), result]), place[0], place[1])

    def launched(self, kernel: Any, named: Mapping[str, Any]) -> None:
        super().launched(kernel, self._without(named))

    def arguments(self, frame: FrameType) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._without(super().arguments(frame))
        return found

    def _without(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._stand_in(value)
        if isinstance(value, Mapping):
            return {key: self._without(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._without(item) for item in value)
        return value

    def _stand_in(self, value: Tensor) -> Tensor:
        if isinstance(value, FakeTensor) or value.layout is not torch.strided or value.is_meta:
            return value
        found: Tensor | None = self._stand_ins.get(value)
        if found is not None:
            return found
        storage = value.untyped_storage()
        held = self._bases.get(storage._cdata)
        if held is None or held[0].expired():
            held = (StorageWeakRef(storage), memory(storage.nbytes(), value.device))
            self._bases[storage._cdata] = held
        self._stand_ins[value] = found = part(held[1], value)
        return found


class _UnreadMasks(Masks):
    """What is known of masks without reading any: of a mask that is not followed from how it was made, nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = 0

    def allowed(self, mask: Tensor) -> int | None:
        found = super().allowed(mask)
        if found is None and lacks_data(mask):
            # A formula that asked has no answer, which makes its operator uncounted.
            raise _UnreadError("a mask cannot be read while a CUDA graph is captured")
        return found

    def observe(self, name: str, call: Call, product: Reprice | None) -> None:
        try:
            super().observe(name, call, product)
        except _UnreadError:
            self.unread += 1


class _UnreadError(MfuError):
    """A price or a fact depends on data that may not be read now."""
