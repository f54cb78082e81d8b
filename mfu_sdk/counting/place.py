"""Where in the program an operator runs: in which module, and in the forward, backward, recomputation or optimizer.

Read from the Python stack of the thread that runs it, so no hook is left in any module or optimizer: nothing can leak,
`torch.compile` sees nothing, and a step() or forward that began before counting did is recognised all the same.
"""

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Final, Literal

import torch
from torch.utils.weak import WeakIdKeyDictionary

Stage = Literal["forward", "backward", "recompute", "optimizer"]

_MODULE_CALL: Final = torch.nn.Module._call_impl.__code__
# Every optimizer's step is wrapped by closures of this one function, which share its code.
_OPTIMIZER_STEP: Final = torch.optim.Optimizer.profile_hook_step(lambda *_: None).__code__
_ENGINE: Final = torch.autograd.graph._engine_run_backward.__code__
# Checkpointing without reentrance recomputes when a saved tensor is unpacked.
_UNPACK: Final = "_checkpoint_hook.__init__.<locals>.unpack_hook"


# DTensor finds an operator's global result by running it on fake tensors; that is no work of the model's.
_SHAPE_INFERENCE: Final = "torch.distributed.tensor._sharding_prop"


def only_infers_shapes() -> bool:
    """Whether the operator that runs now, on fake tensors, is DTensor's way to learn a shape."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _SHAPE_INFERENCE:
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """The module's qualified name ("GPT.blocks.0.mlp"; "" outside of any) and the stage."""

    module: str
    stage: Stage


class Places:
    """Finds the place of the operator that runs now, and remembers which module each autograd node came from."""

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        self._names = WeakIdKeyDictionary()
        self._by_node: dict[int, str] = {}
        if model is not None:
            self._name_all(model)

    def clear(self) -> None:
        """Forget the autograd nodes; modules keep their names."""
        self._by_node.clear()

    def now(self) -> Place:
        """The place of the operator whose dispatch is on the stack.

        In the autograd engine, an operator is recomputation under `CheckpointFunction` (torch's, Megatron's and
        DeepSpeed's share the name) or under the unpacking of a checkpoint's saved tensor, else backward. An operator
        of an `Optimizer.step` is the optimizer's, in the engine too, except in the closure of step(), which runs with
        gradients on.
        """
        modules: list[torch.nn.Module] = []
        recomputing = False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code is _MODULE_CALL:
                modules.append(frame.f_locals["self"])
            elif code is _ENGINE:
                break
            elif code is _OPTIMIZER_STEP:
                if not modules and not torch.is_grad_enabled():
                    return Place("", "optimizer")
            elif code.co_name == "unpack_hook" and code.co_qualname == _UNPACK:
                recomputing = True
                break
            frame = frame.f_back

        in_engine = torch._C._current_graph_task_id() != -1
        node = torch._C._current_autograd_node() if in_engine else None
        recomputing = recomputing or (node is not None and node.name() == "CheckpointFunctionBackward")
        module = self._name(modules) if modules else ""
        if node is not None and not recomputing:
            module = self._by_node.get(node._sequence_nr(), module)
        # The autograd node of an operator is made just before the operator is dispatched. An operator without a node
        # leaves the number as it is: the first to use it is its owner.
        latest = torch._C._autograd._get_sequence_nr() - 1  # pyright: ignore[reportAttributeAccessIssue]  # made in C++
        self._by_node.setdefault(latest, module)
        stage: Stage = "forward" if not in_engine else "recompute" if recomputing else "backward"
        return Place(module, stage)

    def _name(self, modules: list[torch.nn.Module]) -> str:
        """The name of the innermost of `modules`; one that no traversal has met goes by the nearest that one has."""
        if modules[0] not in self._names:
            self._name_all(modules[-1])
        return next((self._names[module] for module in modules if module in self._names), "")

    def _name_all(self, root: torch.nn.Module) -> None:
        top = self._names[root] if root in self._names else type(root).__name__
        for name, module in root.named_modules():
            if module not in self._names:
                self._names[module] = f"{top}.{name}" if name else top
