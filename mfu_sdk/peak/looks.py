"""What the driver says of a device at work, about once a second: its clock, what holds it back, its witness.

For a thread that waits for nobody: a look is five calls into the driver. What it does not tell is None.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.nvml import Gpu, Nvml, Witness

EVERY_NS: Final = 900_000_000
"""At least so long between two looks: who looks wakes once a second, and more often where there is haste."""
MARGIN_NS: Final = 1_000_000_000
"""How long after an interval a look still tells of it: as long as one may have to be waited for."""
MOST_LOOKS: Final = 256
LASTING: Final = 0.1
"""The share of looks in which a reason must be seen: a blip, as when the clock rises from idle, held nothing back."""
IDLE: Final = "idle"
"""What NVML says of a clock that is low because nothing runs."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look, at `at_unix_ns`: clock in MHz, why it is not higher, and the share of the time since the look before,
    `over_s` seconds, in which tensor pipes were busy."""

    at_unix_ns: int
    clock_mhz: float | None
    reasons: tuple[str, ...] | None
    tensor_share: float | None
    over_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the looks of an interval come to: the mean clock in MHz while the device had work, what lasted of the
    reasons, and the share of the time (0..1) in which tensor pipes were busy."""

    clock_mhz: float | None
    reasons: tuple[str, ...] | None
    tensor_share: float | None


def seen(looks: Sequence[Look]) -> Seen:
    """What `looks` come to. An idle device lowers its clock, which says nothing of the work."""
    busy = [look for look in looks if IDLE not in (look.reasons or ())]
    clocks = [look.clock_mhz for look in busy if look.clock_mhz is not None]
    told = [look.reasons for look in busy if look.reasons is not None]
    times = Counter(reason for reasons in told for reason in reasons)
    shares = [(look.tensor_share, look.over_s) for look in looks if look.tensor_share is not None and look.over_s > 0]
    over_s = math.fsum(seconds for _, seconds in shares)
    return Seen(
        clock_mhz=math.fsum(clocks) / len(clocks) if clocks else None,
        reasons=tuple(sorted(reason for reason, n in times.items() if n >= LASTING * len(told))) if told else None,
        tensor_share=math.fsum(share * seconds for share, seconds in shares) / over_s if over_s else None,
    )


class Looks:
    """The looks at one device, a GPU or a MIG slice by its UUID. One thread's own.

    The driver is first asked at the first look, and never again where it does not answer.
    """

    def __init__(self, device_id: str) -> None:
        self._device_id = device_id
        self._session: Nvml | None = None
        self._gpu: Gpu | None = None
        self._witness: Witness | None = None
        self._asked = False
        self._looks: deque[Look] = deque(maxlen=MOST_LOOKS)
        self._last_unix_ns: int | None = None

    def look(self, now_unix_ns: int) -> None:
        """Look, unless that was a moment ago."""
        since_ns = None if self._last_unix_ns is None else now_unix_ns - self._last_unix_ns
        # A wall clock that was set back begins anew.
        if since_ns is not None and 0 <= since_ns < EVERY_NS:
            return
        if not self._asked:
            self._open()
        if self._gpu is None:
            return
        self._last_unix_ns = now_unix_ns
        clock_mhz, reasons = self._gpu.pulse()
        activity = None if self._witness is None else self._witness.take()
        self._looks.append(
            Look(
                now_unix_ns,
                None if clock_mhz is None else float(clock_mhz),
                reasons,
                None if activity is None else activity.tensor,
                0.0 if since_ns is None else max(0.0, since_ns / 1e9),
            )
        )

    def between(self, start_unix_ns: int, end_unix_ns: int) -> Seen:
        """What was seen from one moment to another."""
        return seen([look for look in self._looks if start_unix_ns <= look.at_unix_ns <= end_unix_ns + MARGIN_NS])

    def close(self) -> None:
        """Look no more."""
        session, self._session, self._gpu = self._session, None, None
        if self._witness is not None:
            self._witness.close()
        if session is not None:
            session.close()

    def _open(self) -> None:
        self._asked = True
        try:
            self._session = Nvml.open()
        except NvmlError:
            return
        self._gpu = self._session.gpu(self._device_id)
        self._witness = None if self._gpu is None else Witness.of(self._gpu)
