"""A call of a function that has a price: what runs beneath it is covered."""

from types import FrameType
from typing import Any

import torch

from mfu_sdk.counting.functions import FunctionCost, FunctionPrice


class Region:
    """One running call of a priced function, or the backward of one: what runs beneath it is covered by its price.

    `cost` is set once it was charged; None says that its formula failed, so that what runs beneath it counts by itself.
    """

    __slots__ = ("_number", "_task", "bytes_moved", "charged", "cost", "dtype", "frame", "name", "node", "price")

    def __init__(self, name: str, price: FunctionPrice, frame: FrameType | None, number: int) -> None:
        self.name = name
        self.price = price
        # None for a backward.
        self.frame = frame
        self.charged = False
        self.cost: FunctionCost | None = None
        self.dtype = "none"
        self.bytes_moved = 0
        # The autograd node whose backward this is, while it runs.
        self.node: Any = None
        self._number = number
        self._task = -1

    def runs(self, node: Any) -> None:
        """The backward of `node` runs; each time that it does (the graph being retained) it is charged again."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            self.node = node
            self.charged = False

    def node_number(self) -> int | None:
        """The number of the autograd node that the call of an autograd.Function's forward has made, if it made one.

        The context that a forward is given is its node. Where it gets none (`setup_context`), the node is the one made
        last when the forward began.
        """
        assert self.frame is not None
        parameters = self.frame.f_code.co_varnames[: self.frame.f_code.co_argcount]
        if "ctx" not in parameters:
            return self._number
        node = self.frame.f_locals["ctx"]
        return int(node._sequence_nr()) if hasattr(node, "_sequence_nr") else None
