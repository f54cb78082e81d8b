"""Charges the replay of a CUDA graph with what was captured in it, which no dispatch mode sees run.

While counting is on, or a monitor lives, ours stand in the place of three methods of `torch.cuda.CUDAGraph`. Between
`capture_begin` and `capture_end` a mode of its own notes the operators that are dispatched, by their shapes alone: no
tensor is read while a stream is captured (`recording`). A replay is charged with what was noted for its graph. A graph
that was captured before, or whose capture could not be followed, replays as an operator of unknown cost.

A graph that is freed while another is captured ends that capture with an error of CUDA's, and one in a cycle of
references, as `torch.cuda.make_graphed_callables` leaves, is freed whenever the garbage collector runs, which noting
makes run sooner. So it does not run between the two.

The graphs that `torch.compile` makes for itself (`mode="reduce-overhead"`) run beneath a compiled graph's call, which
is counted by that graph's text, whether it warms up, captures or replays: they are left alone.
"""

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mfu_sdk.counting.tally import Priced, Stage
from mfu_sdk.guard import shield

Captured = Mapping[tuple[Priced, str, Stage], int]
"""The kinds of calls in a graph, with their module, stage and number."""
Seen = Callable[[Captured | None], None]
"""Called after a replay, in its thread, with what the graph holds; None where that is not known."""


class Recorder(Protocol):
    """Notes what is dispatched in the thread that started it."""

    def start(self) -> None:
        """Note from here on."""

    def stop(self) -> None:
        """Note no more."""

    def captured(self) -> Captured:
        """What was noted."""
        ...


_CLASS: Final = "CUDAGraph"
_COMPILER: Final = ("torch._inductor.cudagraph_trees", "torch._inductor.compile_fx")
_lock: Final = threading.RLock()
_seen: Final[list[Seen]] = []
_keepers: Final[list[object]] = []
_originals: Final[dict[str, Any]] = {}
_patched: list[type] = []
_captured: Final = WeakIdKeyDictionary()
"""By graph: what it holds."""
_recording: Final[dict[int, "_Capture"]] = {}
"""By `id` of a graph that is being captured."""
_collecting: Final[list[bool]] = []
"""Whether the garbage collector was on when the captures that are under way began."""


@dataclass(frozen=True, slots=True)
class _Capture:
    """The thread that captures a graph, what notes it, and what ends it where the graph is dropped before its end."""

    thread: int
    recorder: Recorder | None
    dropped: "weakref.finalize[Any, Any]"

    def end(self) -> Captured | None:
        """What was noted. A mode is a thread's own: None in another thread, since it has not followed the whole."""
        self.dropped.detach()
        if self.recorder is None:
            return None
        self.recorder.stop()
        return self.recorder.captured() if self.thread == threading.get_ident() else None


def watch(seen: Seen) -> None:
    """Call `seen` at every replay, and note what is captured, until `unwatch`."""
    with _lock:
        _seen.append(seen)
        _patch()


def unwatch(seen: Seen) -> None:
    """Undo `watch`."""
    with _lock:
        if seen in _seen:
            _seen.remove(seen)
        _restore()


def keep() -> Callable[[], None]:
    """Note what is captured while nothing is counted, until what this returns is called."""
    keeper = object()
    with _lock:
        _keepers.append(keeper)
        _patch()

    def leave() -> None:
        with _lock:
            if keeper in _keepers:
                _keepers.remove(keeper)
            _restore()

    return leave


def is_capturing() -> bool:
    """Whether this thread's CUDA stream is being captured, so that nothing may be read from a device."""
    started = torch.cuda.is_initialized()
    return bool(started and torch.cuda.is_current_stream_capturing())


def captures() -> bool:
    """Whether a capture is under way in any thread, of those that were seen to begin."""
    return len(_recording) > 0


def _patch() -> None:
    kind = getattr(torch.cuda, _CLASS, None)
    if _patched or not isinstance(kind, type):
        return
    replacements = {"capture_begin": _begins, "capture_end": _ends, "replay": _replays}
    if not all(name in kind.__dict__ for name in replacements):
        return
    for name, replacement in replacements.items():
        _originals[name] = kind.__dict__[name]
        setattr(kind, name, replacement(kind.__dict__[name]))
    _patched.append(kind)


def _restore() -> None:
    if _seen or _keepers:
        return
    for graph_id in tuple(_recording):
        _end(graph_id)
    for kind in _patched:
        for name, original in _originals.items():
            setattr(kind, name, original)
    _patched.clear()
    _originals.clear()


def _begins(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(graph, *args, **kwargs)
        with shield("count"):
            _captured.pop(graph, None)
            recorder: Recorder | None = None
            if not _is_inductors():
                # It counts as any mode does, and that is built on this.
                from mfu_sdk.counting.recording import RecordingMode

                recorder = RecordingMode(reach="none")
                recorder.start()
            dropped = weakref.finalize(graph, _end, id(graph))
            dropped.atexit = False
            with _lock:
                if not _recording:
                    _collecting.append(gc.isenabled())
                    gc.disable()
                _recording[id(graph)] = _Capture(threading.get_ident(), recorder, dropped)
        return result

    return capture_begin


def _ends(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture_end(graph: Any, *args: Any, **kwargs: Any) -> Any:
        noted = None
        with shield("count"):
            if (capture := _recording.get(id(graph))) is not None:
                noted = capture.end()
        try:
            # A capture that failed raises here, and leaves a graph without content.
            result = original(graph, *args, **kwargs)
        finally:
            _end(id(graph))
        if noted is not None:
            _captured[graph] = noted
        return result

    return capture_end


def _end(graph_id: int) -> None:
    """Note no more of this graph, if it is being captured; with the last one garbage is collected again."""
    with _lock:
        capture = _recording.pop(graph_id, None)
        if capture is None:
            return
        with shield("count"):
            capture.end()
        if not _recording and _collecting.pop():
            gc.enable()


def _replays(original: Callable[..., Any]) -> Callable[..., Any]:
    def replay(graph: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(graph, *args, **kwargs)
        if _seen:
            with shield("count"):
                captured: Captured | None = _captured.get(graph)
                for seen in tuple(_seen):
                    seen(captured)
        return result

    return replay


def _is_inductors() -> bool:
    """Whether it is compiled code that captures a graph of itself: its calls are counted by its text."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in _COMPILER:
            return True
        frame = frame.f_back
    return False
