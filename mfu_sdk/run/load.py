"""The server's load, asked for once a second in a thread of its own: never on the path of a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mfu_sdk.guard import shield, warn_once
from mfu_sdk.requests import Load

INTERVAL_S = 1.0
STALE_S = 3 * INTERVAL_S
"""How old an answer may be that is still reported."""


class LoadSampler:
    """Asks `load` every `interval_s` seconds from `start` to `stop`."""

    def __init__(
        self,
        load: Callable[[], Load],
        interval_s: float = INTERVAL_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._interval_s = interval_s
        self._now_s = now_s
        self._latest: tuple[float, Load] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._thread = threading.Thread(target=self._run, name="mfu-load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; waits for an answer that is under way, a second at the most."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def latest(self) -> Load | None:
        """The last answer, None where there is none that is younger than `STALE_S`."""
        latest = self._latest
        return None if latest is None or self._now_s() - latest[0] > STALE_S else latest[1]

    def sample(self) -> None:
        """Ask once."""
        with shield("the load callback"):
            found: object = self._load()
            if isinstance(found, Load):
                self._latest = (self._now_s(), found)
            elif found is not None:
                warn_once("inference(load=…)", f"gave a {type(found).__name__}, must be an mfu_sdk.Load; left out")

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self._interval_s)
