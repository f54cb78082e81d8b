"""How long a GPU stood still in a run's steps, as its driver tells: the one sign of a starved device that is free.

On a GPU operators return before they are done, so nothing in the process knows when the device waits for its host,
unless a profiler is on. The driver does: of its last period it tells the share in which any kernel ran. A thread asks
it once a second. The share is no measure of use, as which it is often taken (a kernel on one multiprocessor counts as
much as one on all), but what is missing to one is time in which nothing ran at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from mfu_sdk.errors import NvmlError
from mfu_sdk.guard import shield
from mfu_sdk.peak.nvml import Nvml

EVERY_S: Final = 1.0
CLOSING_S: Final = 0.5
MOST_APART: Final = 0.05
"""The share that steps of no sum of times may have of those between two looks: of quick steps one is counted each
second."""
MOST_S: Final = 60.0
"""Of a run in which no step has ended for so long, what was seen meanwhile is no step's."""


class DriverIdle:
    """Asks for that share once in `every_s` seconds until `close`, and tells how long steps stood still.

    `device_id` is the GPU's UUID. `passed` gives the seconds of all steps that the device has passed, and of those that
    are in no sum of times: the first, which compiles, and counted and profiled ones hold the host up as no other step
    does. `told` is called with the idle seconds of steps, and the seconds of these steps.
    """

    def __init__(
        self,
        device_id: str,
        passed: Callable[[], tuple[float, float]],
        told: Callable[[float, float], None],
        now_s: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self._device_id = device_id
        self._passed = passed
        self._told = told
        self._now_s = now_s
        self._every_s = every_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked_s = now_s()
        self._wall_s = self._busy_s = 0.0
        self._passed_s, self._apart_s = passed()

    def start(self) -> None:
        """Look from here on, in a thread that ends with the process if not before."""
        self._thread = threading.Thread(target=self._run, name="mfu-driver-idle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. Waits for the thread, but not for a driver that does not answer."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(CLOSING_S)

    def look(self, busy_share: float) -> None:
        """Enter what was seen now: the share (0..1) of the time since the last look in which a kernel ran."""
        now_s = self._now_s()
        since_s, self._looked_s = now_s - self._looked_s, now_s
        self._wall_s += since_s
        self._busy_s += busy_share * since_s
        passed_s, apart_s = self._passed()
        steps_s = min(passed_s - self._passed_s, self._wall_s)
        if steps_s <= 0 and self._wall_s < MOST_S:
            # A step is longer than a second.
            return
        if steps_s > 0 and apart_s - self._apart_s <= MOST_APART * (passed_s - self._passed_s):
            # Outside of steps the device is taken to be idle: what ran there is charged to steps, never the reverse.
            self._told(max(0.0, steps_s - self._busy_s), steps_s)
        self._passed_s, self._apart_s = passed_s, apart_s
        self._wall_s = self._busy_s = 0.0

    def _run(self) -> None:
        with shield("asking the driver"):
            try:
                session = Nvml.open()
            except NvmlError:
                return
            try:
                gpu = session.gpu(self._device_id)
                while gpu is not None and not self._over.wait(self._every_s):
                    # After a fork the driver must not be asked, and what it once does not tell it never will.
                    if not session.alive or (share := gpu.busy_share()) is None:
                        return
                    self.look(share)
            finally:
                session.close()
