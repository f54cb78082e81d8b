"""The board on which ranks post their totals and read those of others: keys in a store, never a collective."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from mfu_sdk.guard import shield, warn_once
from mfu_sdk.ranks import AllRanks, Counted, RankTotals
from mfu_sdk.records import RunIdentity
from mfu_sdk.run.key_store import key_store

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

ANSWER_S: Final = 1.0
"""Seconds that a caller waits for the store at most: to read, or to be heard at the end."""
OTHERS_S: Final = 2.0
"""Seconds that a rank which closes waits at most for the others' last word, those that have posted before."""
MOST_READERS: Final = 256
"""Ranks up to which all read what all have posted, n² keys in the end; above, rank 0 alone does."""
MOST_LISTENERS: Final = 64
"""Ranks up to which they also do so while the run goes on (`listen`), twice a minute."""
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.128
_AT_ONCE: Final = 256


class Board:
    """One rank's view of the board of one attempt at a run.

    The store is asked in threads of our own, one at a time, because a host that is gone leaves a question unanswered
    for many minutes: no caller waits longer than it is told to. After that, or after an error, nothing more is asked.
    """

    def __init__(self, store: Store, identity: RunIdentity, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._at = f"mfu_sdk/board/{identity.run_id}/{identity.attempt}"
        self._rank = identity.rank
        self._world_size = identity.world_size
        self._sleep = sleep
        self._heard: dict[int, RankTotals] = {}
        self._asking: threading.Thread | None = None
        self._starting = threading.Lock()
        self._failed = False
        # A forked child has our sockets, and no business with them.
        self._process = os.getpid()

    @classmethod
    def open(cls, identity: RunIdentity) -> Board | None:
        """The board of the run, None for a rank on its own, and where the ranks have no store in common."""
        if identity.world_size == 1:
            return None
        with shield("opening the ranks' board"):
            try:
                shared = key_store()
            except RuntimeError as error:
                warn_once("ranks", f"the process group's store gave no answer ({error}); other ranks are not known")
                return None
            return None if shared is None else cls(shared.store, identity)
        return None

    def post(self, mine: RankTotals) -> None:
        """Put `mine` up, without waiting for it to be done; dropped where an earlier post is still on its way."""
        self._heard[self._rank] = mine
        self._ask(lambda: self._write(mine), 0.0)

    def listen(self) -> None:
        """Look at what the others have posted, without waiting: what there is of it is `known` later. From any thread.

        Dropped where something is being asked already, and where the ranks are many.
        """
        if self._world_size <= MOST_LISTENERS:
            self._ask(self._look, 0.0)

    def read(self, mine: RankTotals) -> AllRanks:
        """Put `mine` up, and say what there is of all ranks now."""
        self._heard[self._rank] = mine

        def ask() -> None:
            self._write(mine)
            self._look()

        self._ask(ask, ANSWER_S)
        return self.known()

    def close(self, mine: RankTotals, *, wait: bool) -> AllRanks:
        """Put up this rank's last word; with `wait`, take in that of the others, which comes at about the same time."""
        self._heard[self._rank] = mine

        def last() -> None:
            self._write(mine)
            self._store.set(f"{self._at}/closed/{self._rank}", "")
            self._look()
            if wait:
                self._await_others()

        self._ask(last, ANSWER_S + OTHERS_S)
        return self.known()

    def known(self) -> AllRanks:
        """What was heard so far, without asking."""
        heard = dict(self._heard)
        return AllRanks(self._world_size, tuple(heard[rank] for rank in sorted(heard)))

    def latest(self) -> AllRanks:
        """What there is of all ranks, asked for only where something may still come."""
        if not self.known().complete:
            self._ask(self._look, ANSWER_S)
        return self.known()

    def _await_others(self) -> None:
        others = [f"{self._at}/closed/{rank}" for rank in self._heard if rank != self._rank]
        if not others or not self._reads:
            return
        waited_s, pause_s = 0.0, _FIRST_LOOK_S
        while waited_s < OTHERS_S and not self._store.check(others):
            self._sleep(pause_s)
            waited_s += pause_s
            pause_s = min(2 * pause_s, _LAST_LOOK_S)
        self._look()

    @property
    def _reads(self) -> bool:
        return self._rank == 0 or self._world_size <= MOST_READERS

    def _write(self, mine: RankTotals) -> None:
        self._store.set(self._key(mine.rank), json.dumps(asdict(mine)))

    def _look(self) -> None:
        if not self._reads:
            return
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        for first in range(0, len(others), _AT_ONCE):
            some = others[first : first + _AT_ONCE]
            # A key that is not there would be waited for.
            if not self._store.check([self._key(rank) for rank in some]):
                some = [rank for rank in some if self._store.check([self._key(rank)])]
            for posted in self._store.multi_get([self._key(rank) for rank in some]) if some else ():
                theirs = _totals(posted)
                self._heard[theirs.rank] = theirs

    def _key(self, rank: int) -> str:
        return f"{self._at}/{rank}"

    def _ask(self, question: Callable[[], object], wait_s: float) -> None:
        """Ask in a thread of its own, and wait at most so long."""
        if self._failed or os.getpid() != self._process:
            return
        until_s = time.monotonic() + wait_s

        def ask() -> None:
            with shield("asking the ranks' board"):
                try:
                    question()
                except RuntimeError:
                    # Rank 0 is gone, and the store with it: what was heard so far is what there is.
                    self._failed = True

        mine = threading.Thread(target=ask, name="mfu-ranks", daemon=True)
        while not self._starts(mine):
            earlier, left_s = self._asking, until_s - time.monotonic()
            if left_s <= 0:
                return
            if earlier is not None:
                earlier.join(left_s)
        if wait_s:
            mine.join(max(0.0, until_s - time.monotonic()))

    def _starts(self, asking: threading.Thread) -> bool:
        """Begin to ask, unless something is being asked."""
        with self._starting:
            if self._asking is not None and self._asking.is_alive():
                return False
            self._asking = asking
            asking.start()
            return True


def _totals(posted: bytes) -> RankTotals:
    told = json.loads(posted)
    counted = told.pop("counted")
    return RankTotals(**told, counted=None if counted is None else Counted(**counted))
