"""What timed and sampled steps show on either side of an onset: exchanges between ranks, kernels, the device's work."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from mfu_sdk.drift.fingerprint import of_sets
from mfu_sdk.drift.samples import Samples
from mfu_sdk.run.evidence import SERVED

if TYPE_CHECKING:
    from mfu_sdk.drift.account import Account
    from mfu_sdk.drift.samples import Ran
    from mfu_sdk.drift.stream import Excursion

RECENT_EXCHANGES: Final = 64
"""Steps whose exchanges are kept, of the last ones and of those before them."""
EXCHANGES_APART: Final = 64
"""Steps between two of those before: an onset is found when it has lasted, and what was before it must be there."""
ONSET_BLOCKS: Final = 4
"""Blocks by which an onset may be too late."""
SURE_BLOCKS: Final = 2
"""Blocks by which it may be too early."""
MOST_RESTS: Final = 1024
"""Looks of a GPU's driver that are kept, a second apart each."""
LEAST_RESTS_S: Final = 2.0
"""So many seconds of steps must a side's looks have seen."""


class _Rest(NamedTuple):
    """Of `step_s` seconds of steps, all behind `after_step` and none behind `last_step`, a GPU stood still `idle_s`."""

    after_step: int
    last_step: int
    idle_s: float
    step_s: float


class Sides:
    """Of one run. `block_steps` are the steps of a block; `alone`: there is no other rank to wait for."""

    def __init__(self, block_steps: int, *, alone: bool) -> None:
        self._block_steps = block_steps
        self._alone = alone
        # Of steps whose exchange of gradients was timed: which, and how long it kept them waiting.
        self._exchanges: deque[tuple[int, float]] = deque(maxlen=RECENT_EXCHANGES)
        self._exchanges_before: deque[tuple[int, float]] = deque(maxlen=RECENT_EXCHANGES)
        self._least_exchange_s = math.inf
        self._samples: dict[str, Samples] = {}
        self._rests: deque[_Rest] = deque(maxlen=MOST_RESTS)

    # --- what steps show -------------------------------------------------------------------------------------------

    def exchanged(self, step: int, exposed_s: float) -> None:
        """An exchange kept this step waiting for so long."""
        self._exchanges.append((step, exposed_s))
        before = self._exchanges_before
        if not before or step >= before[-1][0] + EXCHANGES_APART:
            before.append((step, exposed_s))
        self._least_exchange_s = min(self._least_exchange_s, exposed_s)

    def sampled(self, phase: str, step: int, ran: Ran, *, apart: bool = False) -> None:
        """This is what ran in a step; `apart` from what was sampled before it."""
        samples = self._samples.setdefault(phase, Samples())
        if apart:
            samples.begin_anew()
        samples.add(step, ran)
        if ran.exposed_s is not None:
            self.exchanged(step, ran.exposed_s)

    def rested(self, last_step: int, idle_s: float, step_s: float) -> None:
        """A GPU's driver saw no kernel run in `idle_s` of the `step_s` seconds of steps since the last time.

        Called in the thread that asks the driver.
        """
        after_step = self._rests[-1].last_step if self._rests else -1
        self._rests.append(_Rest(after_step, last_step, idle_s, step_s))

    @property
    def sees_exchanges(self) -> bool:
        """Whether any exchange was timed."""
        return bool(self._exchanges)

    # --- what they show of an excursion ----------------------------------------------------------------------------

    def before(self, excursion: Excursion) -> int:
        """The step before which a step is surely before the onset.

        New shapes are counted when they first come, which may be before the onset as it is known.
        """
        return excursion.onset_step - ONSET_BLOCKS * self._block_steps

    def _since(self, excursion: Excursion) -> int:
        """The step from which on a sampled one is surely behind it."""
        return min(excursion.onset_step + SURE_BLOCKS * self._block_steps, excursion.found_step + 1)

    def want_a_sample(self, excursion: Excursion) -> bool:
        """Whether there are sampled steps before the onset and none since, to hold them against."""
        samples = self._samples.get(excursion.phase)
        return samples is not None and samples.known(self.before(excursion), self._since(excursion)) == (True, False)

    def kernels(self, excursion: Excursion) -> tuple[str, ...]:
        """Which kernels ran before and do not since, or the other way round, in words."""
        samples = self._samples.get(excursion.phase)
        found = None if samples is None else samples.changed(self.before(excursion), self._since(excursion))
        return () if found is None else of_sets("kernels", found.gone, found.come)

    def accounts(self, excursion: Excursion, before: Account, after: Account) -> tuple[Account, Account]:
        """The accounts of both sides with what was seen besides: communication and skew, then the host's time."""
        return self._at_the_host(excursion, *self._between_ranks(excursion, before, after))

    def _between_ranks(self, excursion: Excursion, before: Account, after: Account) -> tuple[Account, Account]:
        """The shortest exchange is taken for the bytes, the rest for late ranks."""
        least_s = self._least_exchange_s
        exchanges = dict((*self._exchanges_before, *self._exchanges))
        found: list[Account] = []
        for account, late in ((before, False), (after, True)):
            seen_s = [exposed_s for step, exposed_s in exchanges.items() if (step >= excursion.onset_step) == late]
            if not seen_s:
                return before, after
            mean_s = min(sum(seen_s) / len(seen_s), account.time_s / account.steps)
            skew_s = max(0.0, mean_s - least_s)
            found.append(replace(account, comm_s=(mean_s - skew_s) * account.steps, skew_s=skew_s * account.steps))
        return found[0], found[1]

    def _at_the_host(self, excursion: Excursion, before: Account, after: Account) -> tuple[Account, Account]:
        """Time in which the device neither worked nor waited, where all waits and the work of both sides are known."""
        samples = self._samples.get(excursion.phase)
        if samples is None:
            return self._by_the_driver(excursion, before, after)
        found: list[Account] = []
        rates = samples.seconds_a_flop(self.before(excursion), self._since(excursion))
        for account, seconds_a_flop in zip((before, after), rates, strict=True):
            waits_s = [account.data_s, *((0.0, 0.0) if self._alone else (account.comm_s, account.skew_s))]
            known_s = [wait_s for wait_s in waits_s if wait_s is not None]
            if seconds_a_flop is None or len(known_s) < len(waits_s):
                return self._by_the_driver(excursion, before, after)
            idle_s = account.time_s - sum(known_s) - seconds_a_flop * account.hardware_flops
            found.append(replace(account, host_s=max(0.0, idle_s)))
        return found[0], found[1]

    def _by_the_driver(self, excursion: Excursion, before: Account, after: Account) -> tuple[Account, Account]:
        """What a GPU's driver saw idle is the host's time, less the waits for data as far as they are known."""
        if excursion.phase in SERVED:
            # What passes between requests is no step's.
            return before, after
        until, since = self.before(excursion), self._since(excursion)
        rests = tuple(self._rests)
        found: list[Account] = []
        for account, seen in (
            (before, [rest for rest in rests if rest.last_step < until]),
            (after, [rest for rest in rests if rest.after_step >= since]),
        ):
            step_s = math.fsum(rest.step_s for rest in seen)
            if step_s < LEAST_RESTS_S:
                return before, after
            idle_s = account.time_s * math.fsum(rest.idle_s for rest in seen) / step_s - (account.data_s or 0.0)
            found.append(replace(account, host_s=max(0.0, idle_s)))
        return found[0], found[1]
