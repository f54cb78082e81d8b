"""Whose a device's time is: while several handlers keep one device busy, each has an equal share of its time.

A device's time is told once. Which of two handlers' work the device did at a moment cannot be seen from the host, so
while k of them have requests under way each is given 1/k of the time, and what they report adds up to the time in
which the device was busy. A handler whose model lies on several devices has the mean of its shares of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mfu_sdk.run.clock import Clock, Mark


class Slice(NamedTuple):
    """From one mark to a later one, and the share of that time which is the handler's."""

    start: Mark
    end: Mark
    share: float


_busy: list[DeviceTime] = []
"""The handlers that have requests under way now. Changed in turn (`run.turns`)."""


class DeviceTime:
    """The time in which one handler keeps its devices busy. Not thread-safe: its methods are called in turn."""

    __slots__ = ("_clock", "_devices", "_share", "_since", "_slices")

    def __init__(self, clock: Clock, devices: Sequence[str]) -> None:
        self._clock = clock
        self._devices = tuple(devices)
        self._share = 1.0
        self._since: Mark = None
        self._slices: list[Slice] = []

    def begin(self, at: Mark) -> None:
        """The handler's first request came in."""
        self._since = at
        self._slices = []
        _busy.append(self)
        self._shares_changed()

    def take(self, at: Mark) -> list[Slice]:
        """The slices since the last time that they were taken, up to `at`."""
        self._cut(at)
        found, self._slices = self._slices, []
        return found

    def end(self) -> None:
        """Its last request is answered."""
        _busy.remove(self)
        self._shares_changed()

    def _cut(self, at: Mark) -> None:
        self._slices.append(Slice(self._since, at, self._share))
        self._since = at

    def _shares_changed(self) -> None:
        if _busy == [self]:
            self._share = 1.0
            return
        crowd = Counter(device for each in _busy for device in each._devices)
        for each in _busy:
            share = sum(1 / crowd[device] for device in each._devices) / len(each._devices)
            if share != each._share:
                # Its own clock's mark: events of two devices cannot be compared.
                if each is not self:
                    each._cut(each._clock.mark())
                each._share = share


def merged(slices: list[Slice], more: Sequence[Slice]) -> None:
    """Add `more` to `slices`; one that goes on where the last one ended makes that one longer."""
    for each in more:
        if slices and slices[-1].end is each.start and slices[-1].share == each.share:
            slices[-1] = Slice(slices[-1].start, each.end, each.share)
        else:
            slices.append(each)
