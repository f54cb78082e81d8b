"""Where in the program an operator runs: in which module, in which stage, and beneath which priced function.

Read from the Python stack of the thread that runs it, so no hook is left in any module or optimizer: nothing can leak,
`torch.compile` sees nothing, and a step() or forward that began before counting did is recognised all the same.
"""

import copy
import sys
import threading
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import torch

from mfu_sdk.counting import frames, functions, joint_graphs
from mfu_sdk.counting.frames import (
    CODES,
    ENGINE,
    FOREIGN,
    GRAPH,
    MODULE,
    TARGET,
    UNPACK,
    classify,
    runs_closure,
)
from mfu_sdk.counting.region import Region
from mfu_sdk.counting.reruns import Rerun, Reruns
from mfu_sdk.counting.tally import Stage

OTHERS: Final = "\0"
"""The module of an operator that belongs to another monitored model: not this one's to count."""
ELSEWHERE: Final = "\1"
"""The module of an operator of another thread that belongs to no monitored model: not counted, but said."""
NOT_OURS: Final = frozenset((OTHERS, ELSEWHERE))

_Function: Final = torch.autograd.function.BackwardCFunction
"""What the autograd node of every `autograd.Function` is."""

_MOST_NODES: Final = 1 << 20
"""Autograd nodes whose module is remembered; a step has some thousands."""

Place = tuple[str, Stage, tuple[Region | Rerun, ...]]
"""The module's qualified name ("GPT.blocks.0.mlp"; "" outside of any), the stage, and the priced functions on the
stack, the outermost first; before them the rerun that the operator may be of."""


def _last_node() -> int:
    """The number of the autograd node that this thread made last."""
    made: int = torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]  # made in C++
    return made - 1


def _is_of(node: Any, ahead: Region) -> bool:
    """Whether `node` may be that of a priced function: it has the function's name."""
    return node.name().removesuffix("Backward") in ahead.name


@dataclass(slots=True)
class _Nodes:
    """Of the autograd nodes that one thread made, by their numbers, which are a thread's own: what made them."""

    modules: dict[int, str] = field(default_factory=dict)
    pending: dict[int, Region] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    """A module that was met, and its name; None for one that goes by the name of whatever calls it."""

    module: weakref.ref[torch.nn.Module]
    name: str | None


class Places:
    """Finds the place of the operator that runs now, and remembers which module each autograd node came from.

    `others` gives the models that other monitors watch: their modules, unless they are this model's too, are `OTHERS`.
    `ran_again` is told of operators that had the stage "backward" and prove to be recomputation.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        others: Callable[[], Collection[torch.nn.Module]] = tuple,
        ran_again: Callable[[Rerun], None] = lambda _: None,
    ) -> None:
        self._others = others
        self._model = None if model is None else weakref.ref(model)
        self._known: dict[int, _Known] = {}
        self._regions: dict[int, tuple[Region, ...]] = {}
        self._deep = False
        self._excludes = False
        # What an operator outside of all modules goes by.
        self._nowhere = ""
        self._stage: Stage = "forward"
        self._meets = self._every_node = True
        self._own: dict[int, _Known] | None = None
        self._ran_again = ran_again
        self._thread = threading.get_ident()
        self._forget_nodes()
        if model is not None:
            self._name_all(model)

    def begin(self) -> None:
        """Counting starts: see which functions have prices, and which models are watched by others."""
        self._thread = threading.get_ident()
        frames.refresh()
        self._deep = functions.may_run()
        self._own = None
        self._known = {key: known for key, known in self._known.items() if known.name != OTHERS}
        others = self._others()
        self._excludes = bool(others)
        for model in others:
            for module in model.modules():
                self._learn(module, OTHERS)

    def clear(self) -> None:
        """Forget the autograd nodes; modules keep their names."""
        self._forget_nodes()
        self._regions.clear()

    def _forget_nodes(self) -> None:
        own = _Nodes()
        self._by_node, self._pending = own.modules, own.pending
        # Of every thread of this count: a backward may run in another thread than the forward.
        self._nodes = [own]
        # A GPU's backward runs in a thread of the engine's own, which numbers what it makes itself.
        self._engines: dict[int, _Nodes] = {}
        self._reruns = Reruns()
        self._local = threading.local()

    def end(self) -> None:
        """Counting stops: let go of every frame."""
        self._regions.clear()
        self._reruns.clear()

    def in_thread(self, nowhere: str, stage: Stage, *, every_node: bool) -> "Places":
        """The places of another thread in the same count, for that thread to `enter`.

        Outside of modules an operator goes by `nowhere` there. Where that is `ELSEWHERE` or `OTHERS`, only the model's
        own modules are told apart from it (without a model: all modules), and the backward of what they made.
        `every_node`: this count sees every node that the thread makes, so that others are another thread's of it.
        """
        other = copy.copy(self)
        other._nowhere, other._stage = nowhere, stage
        other._regions, other._reruns, other._engines = {}, Reruns(), {}
        if nowhere in NOT_OURS and self._model is not None:
            other._known = self._own_modules()
            other._meets = False
        other._every_node = every_node
        return other

    def enter(self) -> None:
        """This thread's work begins here, as far as it is counted."""
        self._thread = threading.get_ident()
        nodes: _Nodes | None = getattr(self._local, "nodes", None)
        if nodes is None:
            nodes = self._local.nodes = _Nodes()
            self._nodes.append(nodes)
        self._by_node, self._pending = nodes.modules, nodes.pending
        # The node made last is what ran before's.
        self._by_node.setdefault(_last_node(), self._nowhere)

    def _own_modules(self) -> dict[int, _Known]:
        """The model's modules, and those of the models that others watch."""
        if self._own is None:
            model = None if self._model is None else self._model()
            if model is not None:
                self._name_all(model)
            own = set() if model is None else set(map(id, model.modules()))
            known = tuple(self._known.items())
            self._own = {key: each for key, each in known if key in own or each.name == OTHERS}
        return self._own

    def now(self) -> Place:
        """The place of the operator whose dispatch is on the stack.

        In the autograd engine, an operator is recomputation if gradients are on and it runs under
        `CheckpointFunction` (torch's, Megatron's and DeepSpeed's share the name) or under the unpacking of a
        checkpoint's saved tensor, or if it is the forward's part of a joint graph (`torch.cond`), else backward. An
        operator of an `Optimizer.step` is the optimizer's, in the engine too, except in the closure of step(), which
        runs with gradients on.
        """
        module: str | None = None
        outer: torch.nn.Module | None = None
        inner: torch.nn.Module | None = None
        recomputing = foreign = nested = False
        targets: list[FrameType] = []
        in_engine = torch._C._current_graph_task_id() != -1
        deep = self._deep
        codes = CODES
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            found = codes.get(id(frame.f_code))
            kind = (found or classify(frame)).kind
            if kind:
                if kind == MODULE:
                    outer = frame.f_locals["self"]
                    if module is None:
                        known = self._known.get(id(outer))
                        if known is not None and known.module() is outer:
                            module = known.name
                            if module is not None and not in_engine and not deep:
                                break
                        elif inner is None:
                            inner = outer
                elif kind == FOREIGN:
                    foreign = True
                elif kind == ENGINE:
                    nested = True
                    break
                elif kind == UNPACK:
                    recomputing = True
                    break
                elif kind == TARGET:
                    targets.append(frame)
                    foreign = True
                elif kind == GRAPH:
                    foreign = True
                    recomputing = recomputing or (in_engine and joint_graphs.runs_forward(frame))
                # With gradients on it may be the closure of step() that runs, which is the user's code.
                elif outer is None and not (
                    foreign and torch.is_grad_enabled() and runs_closure(frame, sys._getframe(2))
                ):
                    return self._nowhere, "optimizer", ()
            frame = frame.f_back

        if inner is not None and outer is not None and self._meets:
            # A module that no traversal has met: meet all of the outermost one's.
            module = self._met(inner, outer, module)
        if module is None:
            module = self._nowhere
        stage = self._stage
        regions: tuple[Region | Rerun, ...] = ()
        number = _last_node()
        made = self._by_node
        if in_engine:
            engines = None
            if threading.get_ident() != self._thread:
                engines = self._engines.setdefault(threading.get_ident(), _Nodes())
                made = engines.modules
            node = torch._C._current_autograd_node()
            in_function = isinstance(node, _Function)
            if in_function and not recomputing:
                recomputing = node.name() == "CheckpointFunctionBackward"
            if recomputing:
                stage = "recompute"
            else:
                stage = "backward"
                if node is not None:
                    made_by = node._sequence_nr()
                    if engines is None:
                        ahead = self._pending.get(made_by) if self._pending else None
                        made_in = self._by_node.get(made_by)
                    else:
                        made_in, ahead = self._made_by_either(made_by, node, engines, inner=nested)
                    if made_in is None:
                        module, ahead = self._made_elsewhere(made_by, node, module)
                    elif in_function:
                        # Of a forward that runs again, the inner backward should find the modules.
                        module = made_in if module == self._nowhere else module
                    else:
                        module = made_in
                    rerun = self._reruns.may_be(node, number) if in_function else None
                    if self._reruns.by_node and (proved := self._reruns.reached(made_by)) is not None:
                        self._ran_again(proved)
                    if ahead is not None:
                        ahead.runs(node)
                        regions = (ahead,)
                    elif rerun is not None:
                        regions = (rerun,)
        if targets:
            regions += self._running(targets, number)
        elif self._regions:
            self._regions.pop(threading.get_ident(), None)
        # The autograd node of an operator is made just before the operator is dispatched. An operator without a node
        # leaves the number as it is: the first to use it is its owner.
        made.setdefault(number, module)
        if len(made) > _MOST_NODES:
            made.clear()
        return module, stage, regions

    def _made_by_either(
        self, number: int, node: Any, engines: _Nodes, *, inner: bool
    ) -> tuple[str | None, Region | None]:
        """The module of a node that runs in a thread of the engine's, and its priced function.

        This part's thread has made it, or the engine's has, in a backward: then it most often runs in an `inner`
        backward, as that of what a checkpoint runs again does.
        """
        own = _Nodes(self._by_node, self._pending)
        for nodes in (engines, own) if inner else (own, engines):
            found = nodes.modules.get(number)
            if found is not None:
                ahead = nodes.pending.get(number)
                return found, ahead if ahead is not None and _is_of(node, ahead) else None
        return None, None

    def _made_elsewhere(self, number: int, node: Any, module: str) -> tuple[str, Region | None]:
        """The module of a node that this thread has not made, or not while it was counted; and its priced function."""
        for nodes in tuple(self._nodes) if self._every_node else ():
            found = nodes.modules.get(number)
            if found is not None:
                ahead = nodes.pending.get(number)
                # Of several threads that used the number, the first may be meant.
                return found, ahead if ahead is not None and _is_of(node, ahead) else None
        if self._nowhere in NOT_OURS:
            return self._nowhere, None
        # A node that was made before counting began may be of another watched model's forward: nothing of this model's
        # that is counted has one.
        return OTHERS if self._excludes else module, None

    def await_backward(self, region: Region) -> None:
        """The autograd node under which `region` runs its forward will run its backward: priced together.

        A forward that was called by itself, without a node, has none.
        """
        number = region.node_number()
        if number is not None:
            ahead = Region(region.name, region.price, None, number)
            ahead.cost, ahead.dtype, ahead.bytes_moved = region.cost, region.dtype, region.bytes_moved
            engines = self._engines.get(threading.get_ident())
            (self._pending if engines is None else engines.pending)[number] = ahead

    def _running(self, targets: list[FrameType], number: int) -> tuple[Region, ...]:
        """The regions of the priced functions on this thread's stack, the outermost first.

        Their frames are held until the thread's next operator outside of them, so that no other frame can have their
        identities.
        """
        thread = threading.get_ident()
        before = self._regions.get(thread, ())
        found = []
        for frame in reversed(targets):
            region = next((each for each in before if each.frame is frame), None)
            if region is None:
                entry = CODES.get(id(frame.f_code)) or classify(frame)
                assert entry.price is not None
                region = Region(entry.name, entry.price, frame, number)
            found.append(region)
        self._regions[thread] = tuple(found)
        return self._regions[thread]

    def _met(self, inner: torch.nn.Module, outer: torch.nn.Module, module: str | None) -> str | None:
        """The name of `inner`, where that is now found beneath `outer`; else that of the nearest that has one."""
        self._name_all(outer)
        # One that lies beneath no other goes by the name of whatever calls it, and is not looked for again.
        self._learn(inner, None)
        return self._known[id(inner)].name or module

    def _learn(self, module: torch.nn.Module, name: str | None) -> None:
        known = self._known.get(id(module))
        if known is None or known.module() is not module or known.name is None:
            self._known[id(module)] = _Known(weakref.ref(module), name)

    def _name_all(self, root: torch.nn.Module) -> None:
        known = self._known.get(id(root))
        top = (known.name if known is not None and known.module() is root else None) or type(root).__name__
        for name, module in root.named_modules():
            self._learn(module, f"{top}.{name}" if name else top)
