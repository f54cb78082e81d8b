"""What each rank tells all others over the process group's key-value store, within a bound; who does not is named.

A collective that a rank does not come to hangs the others, and few backends can say who is missing. A store answers
whoever asks: rank 0 gathers everyone's word, and gives out all of them or the names of those that did not come.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mfu_sdk.errors import CalibrationError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_AWAY, _GAVE_UP = "-", "!"
# How often rank 0 looks again for a rank that had come, had waited in vain and may come back.
_AGAIN_S = 0.02
# What a rank allows rank 0, once that is there, beyond the time that rank 0 itself waits for the others.
_GRACE_S = 5.0


class RollCall:
    """Calls of the roll among `size` ranks, of which this is `rank`. Errors of the store are `CalibrationError`s."""

    __slots__ = ("_over", "_prefix", "_rank", "_round", "_size", "_store", "_wait")

    def __init__(self, store: Store, name: str, rank: int, size: int, wait_s: float) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._wait = timedelta(seconds=wait_s)
        self._round = 0
        self._over = False
        # A roll call that has its verdict is over, also for a rank that came too late to it: all ranks' next one is
        # the first that has none, however many each of them has missed.
        number = 0
        try:
            while store.check([f"mfu_sdk/{name}/{number}/0/verdict"]):
                number += 1
        except RuntimeError as error:
            raise _silent(error) from error
        self._prefix = f"mfu_sdk/{name}/{number}"

    def exchange(self, mine: object) -> list[Any]:
        """Everyone's `mine`, plain data, by rank. Raises `CalibrationError`, naming the ranks that do not come."""
        try:
            said = self._exchange(f"{self._prefix}/{self._round}", mine)
        except CalibrationError:
            self._over = True
            raise
        except (RuntimeError, ValueError) as error:
            self._over = True
            raise _silent(error) from error
        self._round += 1
        return said

    def _exchange(self, here: str, mine: object) -> list[Any]:
        self._store.set(f"{here}/{self._rank}", json.dumps(mine))
        verdict = f"{here}/verdict"
        if self._rank == 0:
            said, absent = self._gather(here)
            self._store.set(verdict, json.dumps({"said": said, "absent": absent}))
        elif self._come([f"{here}/0"], self._wait) and self._come([verdict], self._wait + timedelta(seconds=_GRACE_S)):
            told = json.loads(self._store.get(verdict))
            said, absent = told["said"], told["absent"]
        else:
            # Whoever comes later must not take this rank for one that waits.
            self._store.set(f"{here}/{self._rank}", _AWAY)
            said, absent = [], self._not_here(here, range(self._size), but=self._rank)
        if absent:
            raise CalibrationError(self._missing(absent))
        return said

    def _gather(self, here: str) -> tuple[list[Any], list[int]]:
        """All words, or the ranks that have not said theirs when the time is up."""
        keys = [f"{here}/{rank}" for rank in range(self._size)]
        until = time.monotonic() + self._wait.total_seconds()
        while True:
            left = timedelta(seconds=max(until - time.monotonic(), 0.001))
            if self._come(keys, left) and _AWAY.encode() not in (words := self._store.multi_get(keys)):
                gone = [rank for rank, word in enumerate(words) if word == _GAVE_UP.encode()]
                return ([], gone) if gone else ([json.loads(word) for word in words], [])
            if time.monotonic() >= until:
                return [], self._not_here(here, range(self._size))
            time.sleep(_AGAIN_S)

    def _come(self, keys: list[str], within: timedelta) -> bool:
        """Whether all of `keys` are there within that time."""
        if self._store.check(keys):
            return True
        try:
            self._store.wait(keys, within)
        except RuntimeError:
            return False
        return True

    def _not_here(self, here: str, ranks: Iterable[int], but: int | None = None) -> list[int]:
        keys = {rank: f"{here}/{rank}" for rank in ranks if rank != but}
        return [
            rank for rank, key in keys.items() if not self._store.check([key]) or self._store.get(key) == _AWAY.encode()
        ]

    def _missing(self, absent: Sequence[int]) -> str:
        told = ", ".join(map(str, absent))
        return self.failure() or (
            f"rank{'s' if len(absent) > 1 else ''} {told} of {self._size} did not come within "
            f"{self._wait.total_seconds():g} s: measuring collectives takes all ranks; call it on each of them"
        )

    def fail(self, error: BaseException) -> None:
        """Leave word that this rank gives up, for those that wait or will wait for it. Never raises."""
        if self._over:
            # The others have their verdict, or their own reason to give up.
            return
        here = f"{self._prefix}/{self._round}"
        try:
            if self.failure() is None:
                self._store.set(f"{self._prefix}/failed", f"rank {self._rank} gave up: {line_of(error)}")
            self._store.set(f"{here}/{self._rank}", _GAVE_UP)
            if self._rank == 0:
                self._store.set(f"{here}/verdict", json.dumps({"said": [], "absent": [0]}))
        except RuntimeError:
            return

    def failure(self) -> str | None:
        """What the first rank that gave up has left word of."""
        try:
            key = f"{self._prefix}/failed"
            return self._store.get(key).decode() if self._store.check([key]) else None
        except RuntimeError:
            return None


def _silent(error: Exception) -> CalibrationError:
    return CalibrationError(f"the process group's store did not answer ({line_of(error)}): is rank 0 still there?")


def line_of(error: BaseException) -> str:
    """The first line of an error: torch's have a C++ stack below it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
