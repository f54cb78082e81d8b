"""How long a thread stands waiting for collectives while somebody watches: torch's `Work.wait`, timed."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mfu_sdk.run.clock import HostClock

_watching: Final[dict[int, CollectiveWaits]] = {}
_original: Any = None


@dataclass(slots=True)
class CollectiveWaits:
    """What the thread that calls `start` has waited until it calls `stop`: `seconds` in `calls`.

    FSDP2, tensor parallelism and most loops wait with `Work.wait`. What waits by other means is not seen: a future, or
    DistributedDataParallel, whose reducer is not Python. One watcher a thread; a second one in it takes its place.
    """

    clock: HostClock
    seconds: float = 0.0
    calls: int = 0
    _thread: int | None = field(default=None, repr=False)

    def start(self) -> None:
        """Begin anew; nothing where torch's collectives were never loaded."""
        self.seconds, self.calls = 0.0, 0
        self._thread = threading.get_ident()
        _watching[self._thread] = self
        _patch()

    def stop(self) -> None:
        """Leave torch as it was."""
        if self._thread is not None and _watching.get(self._thread) is self:
            del _watching[self._thread]
        self._thread = None
        _unpatch()


def _patch() -> None:
    global _original
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    if _original is not None or c10d is None or not hasattr(c10d, "Work"):
        return
    original = _original = c10d.Work.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        watcher = _watching.get(threading.get_ident())
        if watcher is None:
            return original(self, *args, **kwargs)
        began = watcher.clock.mark()
        try:
            return original(self, *args, **kwargs)
        finally:
            watcher.seconds += watcher.clock.elapsed_s(began, watcher.clock.mark())
            watcher.calls += 1

    c10d.Work.wait = wait


def _unpatch() -> None:
    global _original
    if _original is not None and not _watching:
        sys.modules["torch.distributed.distributed_c10d"].Work.wait = _original
        _original = None
