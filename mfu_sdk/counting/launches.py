"""Sees the launches of Triton kernels from Python while counting is on; the dispatcher never does.

Every launch goes through the `run` of a class of Triton's; while any counting mode is on, ours stands in its place.
What Inductor launches for compiled code goes another way, and an autotuner's trials are no work of the model's.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FrameType
from typing import Any, Final

from mfu_sdk.guard import shield

Seen = Callable[[Any, Mapping[str, Any]], None]
"""Called after a launch with the kernel (Triton's object, `name_of` names it) and its arguments by name."""

_lock: Final = threading.Lock()
_seen: Final[list[Seen]] = []
_originals: Final[dict[type, Any]] = {}


def watch(seen: Seen) -> None:
    """Call `seen` at every launch, in whichever thread, until `unwatch`."""
    with _lock:
        _seen.append(seen)
        for kind in _classes():
            if kind not in _originals:
                _originals[kind] = kind.__dict__["run"]
                kind.run = _watched(kind.__dict__["run"])  # type: ignore[attr-defined]  # a class of Triton's


def unwatch(seen: Seen) -> None:
    """Undo `watch`; when nobody watches, Triton is as it was."""
    with _lock:
        if seen in _seen:
            _seen.remove(seen)
        if not _seen:
            for kind, original in _originals.items():
                kind.run = original  # type: ignore[attr-defined]
            _originals.clear()


def _classes() -> list[type]:
    """Triton's classes whose `run` launches a kernel, where Triton is loaded: nothing is imported for this."""
    names = {"triton.runtime.jit": "JITFunction", "triton.runtime.interpreter": "InterpretedFunction"}
    found = (getattr(sys.modules.get(module), name, None) for module, name in names.items())
    return [kind for kind in found if isinstance(kind, type) and "run" in kind.__dict__]


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if _seen and not kwargs.get("warmup"):
            with shield("seeing a kernel's launch"):
                if not _is_a_trial():
                    named = _named(self, args, kwargs)
                    for seen in tuple(_seen):
                        seen(self, named)
        return result

    return run


def name_of(kernel: Any) -> str:
    """A kernel's "module:qualname"."""
    return f"{kernel.fn.__module__}:{kernel.fn.__qualname__}"


def of_wrapper(operator: str, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """The kernel and arguments of the higher-order operator that stands for a launch in a captured graph, or None."""
    if not operator.startswith("higher_order::triton_kernel_wrapper"):
        return None
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    kernel: Any = kernel_side_table.get_kernel(kwargs["kernel_idx"])
    while not hasattr(kernel, "arg_names") or hasattr(kernel.fn, "arg_names"):
        # An autotuner's, or heuristics' around it.
        kernel = kernel.fn
    constant = kernel_side_table.get_constant_args(kwargs["constant_args_idx"])
    return kernel, _named(kernel, (), {**constant, **kwargs["kwargs"]})


def _named(kernel: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel's arguments by name and in its parameters' order; launch options (num_warps) are none."""
    given = {**dict(_defaults(kernel.fn)), **dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    return {name: given[name] for name in kernel.arg_names if name in given}


@lru_cache(maxsize=1024)
def _defaults(function: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple((p.name, p.default) for p in parameters if p.default is not inspect.Parameter.empty)


def _is_a_trial() -> bool:
    """Whether an autotuner is timing configurations: what it launches then is not the program's work."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "_bench" and "autotuner" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
