"""Sees the watched model's calls through its hooks: those of the loop's thread, and those of other threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from threading import get_ident
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import compiler
from torch.compiler import is_dynamo_compiling

from mfu_sdk.counting.cuda_graphs import is_capturing
from mfu_sdk.guard import contained, shield
from mfu_sdk.run.elsewhere import Elsewhere
from mfu_sdk.run.hooks import Hook

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from mfu_sdk.counting.dispatch import CountingMode
    from mfu_sdk.run.ledger import Ledger
    from mfu_sdk.run.step import Step

# torch leaves the keywords out where a hook is removed while it is on its way to it.
_NO_KEYWORDS: Final[Mapping[str, Any]] = {}
_CUDA: Final = torch.cuda.is_available()
# True while a model is exported (torch/compiler/__init__.py).
_FLAG: Final = "_is_compiling_flag"


class Loop(Protocol):
    """Whoever is told of the calls."""

    ledger: Ledger

    @property
    def step(self) -> Step | None:
        """The step that is open."""
        ...

    def call_begins(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The loop calls the model."""
        ...

    def call_ends(self) -> None:
        """The model returns to the loop; told only as long as no step is marked."""
        ...


class Sight:
    """The hooks on one model, from when it is made until `close`; its own thread's calls are the loop's."""

    def __init__(self, loop: Loop, model: nn.Module, mode: CountingMode) -> None:
        self._loop = loop
        self._model = model
        self._elsewhere = Elsewhere(model, mode)
        self._thread = get_ident()
        self._marked = False
        self._depth = 0
        # Whether other threads have called the model.
        self._elsewhere_too = False
        self._lock = threading.Lock()
        self._ends: RemovableHandle | None = None
        self._begins = model.register_forward_pre_hook(Hook(self._before), with_kwargs=True)
        self._watch_ends()

    def close(self) -> None:
        """Take the hooks off."""
        self._begins.remove()
        self._ignore_ends()

    def steps_are_marked(self) -> None:
        """From here on it makes no difference to a step where a call ends, nor whether the model calls itself."""
        self._marked = True
        if not self._elsewhere_too:
            self._ignore_ends()

    def join(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The model is being called, and the hooks came too late to see it begin."""
        self._before(self._model, args, kwargs)

    def _before(self, module: nn.Module, args: Any, kwargs: Any = _NO_KEYWORDS) -> None:
        # Inside of a compiled model this folds to nothing: no graph break, and no call either. What is captured into a
        # CUDA graph does not run now, and a mark made meanwhile would break the capture.
        # (`is_compiling()` needs two calls to say no: here it is in its two parts, of which the second is torch's own.)
        if is_dynamo_compiling() or getattr(compiler, _FLAG, False) or (_CUDA and is_capturing()):
            return
        loop = self._loop
        if get_ident() != self._thread:
            with shield("seeing a forward pass in another thread"):
                self._elsewhere_too = True
                self._watch_ends()
                loop.ledger.note("the model was also called in other threads, as part of the step that was open then")
                self._elsewhere.begins(args, kwargs, None if loop.step is None else loop.step.others_calls())
            return
        if not self._marked:
            # A boundary lies before a call of the loop's, not before one that the model makes of itself.
            self._depth += 1
            if self._depth > 1:
                return
        began = perf_counter_ns()
        # On the path of every step a `shield` would cost more than what it guards.
        try:
            loop.call_begins(module, args, kwargs)
        except Exception as error:
            if not contained("seeing a forward pass", error):
                raise
        loop.ledger.overhead_ns += perf_counter_ns() - began

    def _after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if compiler.is_compiling() or (_CUDA and is_capturing()):
            return
        if get_ident() != self._thread:
            with shield("seeing a forward pass end in another thread"):
                self._elsewhere.ends()
            return
        if self._marked:
            return
        if self._depth:
            self._depth -= 1
        if self._depth == 0:
            with shield("seeing a forward pass end"):
                self._loop.call_ends()

    def _watch_ends(self) -> None:
        """Be told of the ends of calls too: of other threads' calls, and where no step is marked."""
        with self._lock:
            if self._ends is None:
                self._ends = self._model.register_forward_hook(Hook(self._after), always_call=True)

    def _ignore_ends(self) -> None:
        """Be told of them no more: to be so costs a microsecond a call."""
        with self._lock:
            if self._ends is not None:
                self._ends.remove()
                self._ends = None
