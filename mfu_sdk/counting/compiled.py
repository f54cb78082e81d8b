"""Tells a counting mode what the graphs that Inductor compiled are made of, each time one runs.

Compiled code calls few operators: what it fuses, or makes a kernel of its own for, no dispatch mode sees. So while
counting is on, every call of a compiled graph goes through here. Its operators, for the sizes that it was called with,
are read from the text that Inductor keeps (`graph_text`, `graph_run`); the mode is off while the graph itself runs.
Nothing is compiled again, no guard changes, and with counting off the class is as torch made it. Operators count as
written before fusion; of pointwise work between them the bytes count that its chains move (`fused`). A backward graph's
operators that the forward graph has too were recomputed, by checkpointing or because Inductor found that cheaper than
keeping.

Whether a sum of products was one product of the program's is a matter of where it came from (`provenance`).

Two things the text cannot tell. Where a compiled function takes gradients itself (`torch.func.grad`), its forward and
backward are one graph, and count as forward. And what a price needs the data of, where that data comes from products of
the same graph (an expert's rows, from the router), is not known before the graph runs: such operators are uncounted.
"""

import gc
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from mfu_sdk.counting import cuda_graphs, dataless, graph_run, graph_text, mode_stack, provenance
from mfu_sdk.counting.call import tensors
from mfu_sdk.counting.graph_run import Operation
from mfu_sdk.counting.graph_text import GraphText
from mfu_sdk.counting.provenance import Provenance
from mfu_sdk.guard import shield

_MOST_SIZES: Final = 8
"""Sets of input sizes for which a graph's operators are remembered."""
_MOST_OUTPUTS: Final = 4096


@dataclass(frozen=True, slots=True)
class CompiledCall:
    """One call of a compiled graph: its operators, or None where they are not known; `inputs` are what it reads.

    `moved` is what its fused chains move (`graph_run.Ran`). `backward` says that it is a backward graph. `name` is what
    to call it where it cannot be counted.
    """

    name: str
    operations: Sequence[Operation] | None
    inputs: tuple[Tensor, ...]
    backward: bool = False
    moved: Sequence[tuple[str, int, bool]] = ()


Sink = Callable[[CompiledCall], bool]
"""Is handed a call; returns whether its mode should stay on and see what the graph calls."""


class CompiledRegions:
    """Hands each call of a compiled graph to `sink`, in the thread and at the place of the call, before it runs.

    `mode` is the dispatch mode that counts: calls in threads where it is not on pass untouched, and it is off while a
    graph runs whose operators are known. Where they are not, or `sink` asks for it, it stays on and sees what the graph
    calls; `left` is called when the graph has run. Without `reads_data` no input's data is read, and calls during the
    capture of a CUDA graph are handed over too.
    """

    def __init__(
        self,
        mode: TorchDispatchMode,
        sink: Sink,
        left: Callable[[], None] = lambda: None,
        *,
        reads_data: bool = True,
    ) -> None:
        self.mode = mode
        self.reads_data = reads_data
        self._sink = sink
        self._left = left
        # By the storage of a graph's output: what stood for it, so that what is known of it (masks) is not lost.
        self._outputs: OrderedDict[int, tuple[StorageWeakRef, Any]] = OrderedDict()
        self._late = False

    def start(self) -> None:
        """Watch from here on."""
        with _lock:
            self._late = not _patch()
            provenance.watch()
            _watching.append(self)

    def stop(self) -> None:
        """Undo `start`. Where Inductor was first loaded in between, what it ran is handed over as not known."""
        with _lock:
            if self not in _watching:
                return
            _watching.remove(self)
            provenance.unwatch()
            if not _watching:
                _restore()
        self._outputs.clear()
        # The first graph that this process compiled was called before its class could be watched.
        if self._late and any(True for _ in _alive()):
            self._sink(CompiledCall("inductor::loaded_while_counting", None, ()))

    def enter(self, owner: Any, inputs: Sequence[Any]) -> tuple[bool, graph_run.Ran | None]:
        """Hand over a call that is about to begin: whether the mode may go off, and what the run found."""
        program = _program(owner)
        if not self.reads_data:
            inputs = [dataless.alone(value) if isinstance(value, Tensor) else value for value in inputs]
        found = None if program is None else program.run(inputs, self._alike(inputs))
        name = "inductor::graph" if program is not None else f"inductor::{type(owner).__name__}"
        operations = None if found is None else found.operations
        backward = program is not None and program.backward
        moved = () if found is None else found.moved
        stays = self._sink(CompiledCall(name, operations, tuple(tensors(list(inputs))), backward, moved))
        return found is not None and not stays, found

    def leave(self, found: graph_run.Ran | None, outputs: Any) -> None:
        """Remember what stood for the outputs of a graph whose operators depend on data."""
        self._left()
        if found is None or found.reusable or not isinstance(outputs, (list, tuple)):
            return
        for fake, real in zip(found.outputs, outputs, strict=False):
            if isinstance(fake, FakeTensor) and isinstance(real, Tensor) and real.layout is torch.strided:
                storage = real.untyped_storage()
                self._outputs[storage._cdata] = (StorageWeakRef(storage), fake)
        while len(self._outputs) > _MOST_OUTPUTS:
            self._outputs.popitem(last=False)

    def _alike(self, inputs: Sequence[Any]) -> list[Any]:
        alike = []
        for value in inputs:
            known = None
            if self._outputs and isinstance(value, Tensor) and value.layout is torch.strided:
                known = self._outputs.get(value.untyped_storage()._cdata)
            alike.append(None if known is None else known[1])
        return alike


@dataclass(eq=False)
class _Program:
    """A compiled graph as text, and what its runs found by the sizes of its inputs."""

    text: GraphText
    backward: bool
    constants: dict[str, Tensor]
    provenance: Provenance
    forward: GraphText | None = None
    runs: OrderedDict[Any, graph_run.Ran] = field(default_factory=OrderedDict)

    def run(self, inputs: Sequence[Any], alike: Sequence[Any]) -> graph_run.Ran | None:
        """The operators for these inputs, or None if they cannot be known."""
        key = tuple(map(_form, inputs))
        found = self.runs.get(key)
        if found is not None and not any(same is not None for same in alike):
            self.runs.move_to_end(key)
            return found
        try:
            found = graph_run.run(
                self.text,
                inputs,
                alike=alike,
                constants=self.constants,
                forward=self.forward,
                provenance=self.provenance,
            )
        except Exception:  # noqa: BLE001 - whatever a graph has that cannot run without data makes it unknown
            return None
        if found.reusable:
            self.runs[key] = found
            if len(self.runs) > _MOST_SIZES:
                self.runs.popitem(last=False)
        return found


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return value if isinstance(value, (int, float, bool)) else type(value)


# --- the programs of the graphs that were met -----------------------------------------------------------------------

_lock: Final = threading.RLock()
_watching: Final[list[CompiledRegions]] = []
_programs: Final = WeakIdKeyDictionary()
"""By compiled graph: its program, None where its text cannot be read."""


def _program(owner: Any) -> _Program | None:
    with _lock:
        if owner not in _programs:
            _programs[owner] = _read(owner)
        program: _Program | None = _programs[owner]
        if program is not None and program.backward and program.forward is None:
            program.forward = _forward_of(owner, program.text)
        return program


def _read(owner: Any) -> _Program | None:
    try:
        text = graph_text.read(owner.runnable_graph_str, owner.inductor_post_grad_graph_str)
        constants = dict(owner.constants or {})
        return _Program(text, bool(owner.fx_kwargs.get("is_backward")), constants, provenance.of(owner))
    except Exception:  # noqa: BLE001 - another version of torch writes another text: then the graph is unknown
        return None


def _forward_of(owner: Any, backward: GraphText) -> GraphText | None:
    """The graph whose backward this is: compiled as one with it, and it put out all that this reads but gradients."""
    read = {name for name in backward.inputs if not name.startswith("tangents_")}
    number = owner.fx_kwargs.get("graph_id")
    # A step may be counted from its middle on: then the forward graph has not been met.
    for other in chain(list(_programs.keys()), _alive()):
        if other.fx_kwargs.get("graph_id") == number and not other.fx_kwargs.get("is_backward"):
            program = _programs[other] if other in _programs else _read(other)
            if program is not None and read <= {*program.text.outputs}:
                _programs[other] = program
                return program.text
    return None


def _alive() -> Iterator[Any]:
    """Every compiled graph in this process, also those that have not run while counting was on."""
    module, name = _CLASSES[0]
    kind = getattr(sys.modules.get(module), name, None)
    return (found for found in gc.get_objects() if type(found) is kind) if kind is not None else iter(())


# --- in the place of the classes' own calls -------------------------------------------------------------------------

_CLASSES: Final = (
    ("torch._inductor.output_code", "CompiledFxGraph"),
    ("torch._inductor.output_code", "CompiledAOTI"),
    ("torch.export.pt2_archive._package", "AOTICompiledModel"),
)
"""What runs compiled code; only the first keeps a text of it. Nothing is imported for this."""
_originals: Final[dict[type, Any]] = {}


def _patch() -> bool:
    """Take the place of the classes that are loaded; whether Inductor's is."""
    for module, name in _CLASSES:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and kind not in _originals and "__call__" in kind.__dict__:
            _originals[kind] = kind.__dict__["__call__"]
            type.__setattr__(kind, "__call__", _watched(kind.__dict__["__call__"]))
    return _CLASSES[0][0] in sys.modules


def _restore() -> None:
    for kind, original in _originals.items():
        type.__setattr__(kind, "__call__", original)
    _originals.clear()


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        watching = [regions for regions in _watching if mode_stack.holds(regions.mode)]
        if watching and cuda_graphs.is_capturing():
            watching = [regions for regions in watching if not regions.reads_data]
        if not watching:
            return original(owner, *args, **kwargs)
        # Inductor hands its inputs over in one list, and empties it; nothing here may keep them alive.
        inputs = args[0] if len(args) == 1 and isinstance(args[0], list) else args
        if any(isinstance(value, FakeTensor) for value in inputs):
            return original(owner, *args, **kwargs)
        entered = []
        for regions in watching:
            # Reading a mask is no operator of the program: no mode sees it, not even ours.
            with shield("count"), _disable_current_modes(), torch.no_grad():
                goes_off, found = regions.enter(owner, inputs)
                entered.append((regions, goes_off, found))
        del inputs
        outputs = None
        try:
            with _off([regions.mode for regions, goes_off, _ in entered if goes_off]):
                outputs = original(owner, *args, **kwargs)
        finally:
            for regions, _, found in entered:
                with shield("count"):
                    regions.leave(found, outputs)
        return outputs

    return call


@contextmanager
def _off(modes: Sequence[TorchDispatchMode]) -> Iterator[None]:
    """These modes are off this thread's stack, and then where they were: each beneath those that came before it."""
    taken = [mode for mode in modes if mode_stack.remove(mode)]
    try:
        yield
    finally:
        for mode in taken:
            mode_stack.insert(mode)
