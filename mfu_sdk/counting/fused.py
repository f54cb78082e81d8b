"""What moves where pointwise work is fused: what comes from outside of its chains, and what leaves them.

Between two products a chain of pointwise operators, reductions and copies is one kernel, or could be. What is passed
along inside never reaches memory. So all chains of a region together read once what its inputs and its products hold,
and write once what its products read or nobody inside reads, which then is an output. That is the least that can be
moved while products stay kernels of their own: a chain that is split into several kernels moves more, a product with
the chain fused into its epilogue less. Outputs that are also read inside (what a forward keeps for its backward) are
not told from the rest, and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from mfu_sdk.counting import traffic
from mfu_sdk.counting.call import Call, tensors

OUT: Final = "fused::out"
"""What is written for those that come after a chain, among operators' names."""
_STRIDED: Final = torch.strided


class Chains:
    """The pointwise chains of one region, whose operators are entered in the order in which they run.

    Tensors are told apart by their storage, so that views of what a chain made are the chain's.
    """

    def __init__(self) -> None:
        # The bytes of the largest view that was made of each storage.
        self._made: dict[int, int] = {}
        self._used: set[int] = set()
        # Bytes of each storage that were read from outside, or written to be read there; each no more than once.
        self._read: dict[int, _Part] = {}
        self._written: dict[int, _Part] = {}
        # An address is a storage's own for as long as the storage lives. Tensors are not kept: autograd takes over a
        # gradient as it is only where nobody else holds it.
        self._kept: list[Any] = []
        self._moved: list[tuple[str, int, bool]] = []

    def enter(self, name: str, call: Call, *, fused: bool, again: bool = False) -> None:
        """Enter an operator; `fused` says whether it is a chain's, `again` whether it is recomputed."""
        moved = self.pointwise(call) if fused else self.other(call)
        if moved:
            self._moved.append((name if fused else OUT, moved, again))

    def all_moved(self) -> tuple[tuple[str, int, bool], ...]:
        """The bytes that were moved, by operator, each with whether it was recomputed; `left` among them."""
        return (*self._moved, *((OUT, moved, False) for moved in self.left()))

    def pointwise(self, call: Call) -> int:
        """The bytes that an operator of a chain reads or writes outside of the chains."""
        name = call.func._schema.name
        results = list(tensors(call.result))
        self._keep(results)
        if name in traffic.NOTHING_MOVES:
            return 0
        inputs = list(call.inputs())
        given = {_storage(tensor) for tensor in inputs}
        if not call.func._schema.is_mutable and all(_storage(tensor) in given for tensor in results):
            # A view, whatever its schema says.
            return 0
        moved = 0
        if name in traffic.OVERWRITES:
            inputs = inputs[1:]
        if name in traffic.LOOKUPS and inputs:
            source, *inputs = inputs
            if _storage(source) in self._made:
                self._used.add(_storage(source))
            else:
                # Of a table the rows that are asked for.
                moved += min(traffic.tensor_bytes(source), sum(map(traffic.tensor_bytes, results)))
        moved += sum(self._read_from_outside(tensor) for tensor in inputs)
        for tensor in results:
            storage = _storage(tensor)
            if storage in given and storage not in self._made:
                # In place, on what is not the chains' own.
                moved += _Part.of(self._written, storage).more(tensor)
            else:
                self._made[storage] = max(self._made.get(storage, 0), traffic.tensor_bytes(tensor))
        return moved

    def other(self, call: Call) -> int:
        """The bytes that chains have written for an operator outside of them, such as a product."""
        self._keep(tensors(call.result))
        return sum(self._write_to_outside(tensor) for tensor in call.inputs() if _storage(tensor) in self._made)

    def left(self) -> Iterator[int]:
        """The bytes that are written for each tensor that the chains made and nobody inside has read."""
        for storage, made in self._made.items():
            if storage not in self._used:
                yield made

    def _keep(self, many: Iterable[Tensor]) -> None:
        self._kept += [tensor.untyped_storage() if tensor.layout is _STRIDED else tensor for tensor in many]

    def _read_from_outside(self, tensor: Tensor) -> int:
        storage = _storage(tensor)
        if storage in self._made:
            self._used.add(storage)
            return 0
        self._keep((tensor,))
        return _Part.of(self._read, storage).more(tensor)

    def _write_to_outside(self, tensor: Tensor) -> int:
        storage = _storage(tensor)
        self._used.add(storage)
        return _Part.of(self._written, storage).more(tensor)


class _Part:
    """How much of a storage has been moved: views of it that were not moved before, and no more than it holds."""

    def __init__(self) -> None:
        self._views: set[tuple[int, ...]] = set()
        self._bytes = 0

    @staticmethod
    def of(parts: dict[int, _Part], storage: int) -> _Part:
        return parts.setdefault(storage, _Part())

    def more(self, tensor: Tensor) -> int:
        if tensor.layout is not _STRIDED or tensor.is_nested:
            return traffic.tensor_bytes(tensor)
        # The same numbers in another shape are the same bytes.
        view = (int(tensor.storage_offset()), traffic.tensor_bytes(tensor))
        if view in self._views:
            return 0
        self._views.add(view)
        more = min(view[1], tensor.untyped_storage().nbytes() - self._bytes)
        self._bytes += more
        return more


def _storage(tensor: Tensor) -> int:
    if tensor.layout is not _STRIDED:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)
