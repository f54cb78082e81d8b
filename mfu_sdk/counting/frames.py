"""What a Python frame tells of the operators that run beneath it, worked out once for its code."""

import os
import sys
from types import CodeType, FrameType
from typing import Final

import torch

from mfu_sdk.counting import functions, joint_graphs
from mfu_sdk.counting.functions import FunctionPrice

_OPTIMIZERS: Final = os.path.dirname(torch.optim.__file__) + os.sep  # noqa: PTH120 - code has its file as a string
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120
# DTensor finds an operator's global result by running it on fake tensors; that is no work of the model's.
_SHAPE_INFERENCE: Final = os.path.join("torch", "distributed", "tensor", "_sharding_prop.py")  # noqa: PTH118

# What a frame tells; torch's own and other frames tell nothing by themselves.
TORCHS, FOREIGN, MODULE, ENGINE, OPTIMIZER, UNPACK, TARGET, GRAPH = range(8)


class Code:
    """What the frames of one code object tell; keeps the code alive, so that its id stays its own."""

    __slots__ = ("code", "kind", "name", "price")

    def __init__(self, code: CodeType, kind: int, name: str = "", price: FunctionPrice | None = None) -> None:
        self.code = code
        self.kind = kind
        self.name = name
        self.price = price


_fixed: Final[dict[CodeType, int]] = {
    torch.nn.Module._call_impl.__code__: MODULE,
    torch.autograd.graph._engine_run_backward.__code__: ENGINE,
    # Every optimizer's step is wrapped by closures of this one function, which share its code.
    torch.optim.Optimizer.profile_hook_step(lambda *_: None).__code__: OPTIMIZER,
}
CODES: Final[dict[int, Code]] = {}
"""What the frames of each code object that was met tell, by its id."""
_version = -1


def refresh() -> None:
    """See which functions have prices by now: what was no target may be one."""
    global _version
    if _version != functions.version():
        CODES.clear()
        _version = functions.version()


def classify(frame: FrameType) -> Code:
    """What `frame` tells, remembered for all frames of its code."""
    code = frame.f_code
    kind = _fixed.get(code)
    found = None
    if kind is None:
        file = code.co_filename
        # Checkpointing without reentrance recomputes when a saved tensor is unpacked.
        if code.co_qualname == "_checkpoint_hook.__init__.<locals>.unpack_hook":
            kind = UNPACK
        elif file.startswith(joint_graphs.FILES):
            kind = GRAPH
        elif file.startswith(_OPTIMIZERS) and not file.endswith(("lr_scheduler.py", "swa_utils.py")):
            # A compiled step has no wrapper around it, but keeps its name and file.
            kind = OPTIMIZER
        else:
            kind = TORCHS if file.startswith(_TORCH) else FOREIGN
        found = functions.of_code(code, str(frame.f_globals.get("__name__", "")))
    entry = Code(code, kind) if found is None else Code(code, TARGET, *found)
    if len(CODES) > 65_536:
        CODES.clear()
    CODES[id(code)] = entry
    return entry


def runs_closure(step: FrameType, beneath: FrameType | None) -> bool:
    """Whether, from `beneath` up to the frame of an optimizer's step, the closure that it was given is running."""
    held = step.f_locals
    args, kwargs = held.get("args", ()), held.get("kwargs", {})
    given = held.get("closure", kwargs.get("closure") if isinstance(kwargs, dict) else None)
    if given is None and isinstance(args, tuple) and len(args) > 1:
        given = args[1]
    code = getattr(given, "__code__", None)
    if given is None or code is None:
        # One without code of its own (a partial) may be.
        return given is not None
    while beneath is not None and beneath is not step:
        if beneath.f_code is code:
            return True
        beneath = beneath.f_back
    return False


def only_infers_shapes() -> bool:
    """Whether the operator that runs now, on fake tensors, is DTensor's way to learn a shape."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_SHAPE_INFERENCE):
            return True
        frame = frame.f_back
    return False
