"""What the ranks of a run have done together: each one's totals, their sums, and whose counts do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MOST_NAMED = 4
"""Ranks, and different counts, that a note spells out."""
_WORTH_SAYING = 0.01
"""The share of a step that ranks must wait for another to be told of in a line."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One way in which a run is parallel: over how many ranks, and which of these this rank is."""

    size: int
    index: int


AXES = ("dp", "tp", "pp", "cp", "ep")
"""The ways that have a name: data, tensor, pipeline, context and expert parallel."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a rank counted in one step: its own work.

    `alike` is equal on ranks that should count the same: whose models have the same structure, whose place along all
    known axes but the data-parallel one is the same, and whose step had the same shapes. `steady` says that steps of
    these shapes have cost the same whenever they were counted: no routing decides.
    """

    step: int
    model_flops: int
    alike: str
    steady: bool


@dataclass(frozen=True, slots=True)
class RankTotals:
    """One rank's sums over its timed steps up to `step`, as it posted them last; the names are those of `RunSummary`.

    `available_flops` is Σ peak × time. `data_wait_s` is what one step waited for its data, in the mean, None where the
    loop does not show it. `exchange_s` is what one of training (of evaluation, where none of training was timed) waited
    for data from other ranks, the mean over the steps in which that was timed, and `exchange_least_s` the least; None
    where none was. `closed`: no more is to come of this rank.
    """

    rank: int
    step: int
    steps: int
    timed_steps: int
    duration_s: float
    model_flops: int
    hardware_flops: int
    available_flops: float
    tokens: int | None = None
    data_wait_s: float | None = None
    exchange_s: float | None = None
    exchange_least_s: float | None = None
    counted: Counted | None = None
    closed: bool = False

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over available FLOPs, None where nothing is known."""
        return self.model_flops / self.available_flops if self.available_flops > 0 else None


@dataclass(frozen=True, slots=True)
class AllRanks:
    """All ranks of a run, as far as they have been heard of, in the order of their numbers.

    A rank posts its totals where a step is counted and where it closes, so those of a run under way are as old as its
    last counted step; `step` is how far all have told, `complete` whether all have closed. `mfu` and `hfu` are sums
    over sums, never a mean of ratios, of `model_flops`, `available_flops` and the like; `tokens` the sum of the shares.
    `step_flops` is what all ranks together counted in one step. `lowest` is the rank with the lowest MFU, `late` the
    one that others wait for, `starved` the one that waits longest for data, and `notes` say whose counts do not fit.
    """

    world_size: int
    ranks: tuple[RankTotals, ...]

    @property
    def step(self) -> int | None:
        """The step up to which all ranks that were heard of have told their totals."""
        return min((each.step for each in self.ranks), default=None)

    @property
    def complete(self) -> bool:
        """Whether every rank has closed."""
        return len(self.ranks) == self.world_size and all(each.closed for each in self.ranks)

    @property
    def model_flops(self) -> int:
        """Σ over the ranks that were heard of."""
        return sum(each.model_flops for each in self.ranks)

    @property
    def available_flops(self) -> float:
        """Σ peak × time over the ranks that were heard of."""
        return sum(each.available_flops for each in self.ranks)

    @property
    def mfu(self) -> float | None:
        """Global MFU: Σ model FLOPs / Σ available FLOPs, None where no rank knows its own."""
        known = [each for each in self.ranks if each.available_flops > 0]
        available = sum(each.available_flops for each in known)
        return sum(each.model_flops for each in known) / available if available else None

    @property
    def hfu(self) -> float | None:
        """The same with the FLOPs that ran."""
        known = [each for each in self.ranks if each.available_flops > 0]
        available = sum(each.available_flops for each in known)
        return sum(each.hardware_flops for each in known) / available if available else None

    @property
    def tokens(self) -> int | None:
        """Σ of the ranks' shares, None where one that was heard of told none."""
        shares = [each.tokens for each in self.ranks]
        return None if None in shares or not shares else sum(share or 0 for share in shares)

    @property
    def step_flops(self) -> int | None:
        """Model FLOPs of the step that all ranks counted last, None where one has not counted it: the global count."""
        counted = [each.counted for each in self.ranks if each.counted is not None]
        if len(counted) < self.world_size or len({each.step for each in counted}) > 1:
            return None
        return sum(each.model_flops for each in counted)

    @property
    def lowest(self) -> RankTotals | None:
        """The rank with the lowest MFU, None where all have the same or none has one."""
        known = [(each.mfu, each) for each in self.ranks if each.mfu is not None]
        least = min(known, key=lambda pair: pair[0], default=None)
        return None if least is None or least[0] == max(mfu for mfu, _ in known) else least[1]

    @property
    def exchange_least_s(self) -> float | None:
        """The shortest exchange that any rank timed: the rank that comes last to one waits for the bytes alone."""
        return min((s for each in self.ranks if (s := each.exchange_least_s) is not None), default=None)

    @property
    def late(self) -> tuple[int, float] | None:
        """The rank that waits least for data from others, and how many seconds a step the others wait longer.

        That is the rank that the others wait for. None where not all of them timed an exchange.
        """
        waits = {each.rank: each.exchange_s for each in self.ranks if each.exchange_s is not None}
        return self._apart({rank: -wait_s for rank, wait_s in waits.items()})

    @property
    def starved(self) -> tuple[int, float] | None:
        """The rank that waits longest for data, and how many seconds a step longer than the others.

        Where ranks go in step, these wait for it as long. None where not all of them show their waiting.
        """
        return self._apart({each.rank: each.data_wait_s for each in self.ranks if each.data_wait_s is not None})

    def _apart(self, seconds: Mapping[int, float]) -> tuple[int, float] | None:
        """The rank with the most, and how much more that is than the others' mean."""
        if len(seconds) < self.world_size or len(seconds) < 2:
            return None
        most = max(seconds, key=seconds.__getitem__)
        others = [value for rank, value in seconds.items() if rank != most]
        return most, seconds[most] - sum(others) / len(others)

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not fit: ranks that should have counted the same and did not, and ranks without a count."""
        return tuple(self._unequal()) + tuple(self._without_count())

    def _unequal(self) -> Iterable[str]:
        groups: dict[tuple[str, int], dict[int, list[int]]] = {}
        for each in self.ranks:
            if each.counted is not None and each.counted.steady:
                by_flops = groups.setdefault((each.counted.alike, each.counted.step), {})
                by_flops.setdefault(each.counted.model_flops, []).append(each.rank)
        for (_, step), by_flops in sorted(groups.items()):
            if len(by_flops) > 1:
                yield (
                    f"in step {step} ranks with the same model, place and shapes counted different FLOPs: "
                    f"{_spelled(by_flops)}; one does work that the others do not, or its count is wrong"
                )

    def _without_count(self) -> Iterable[str]:
        # A rank to which no router ever sent a token is idle too, and no less worth saying.
        steady = [(each.rank, each.counted) for each in self.ranks if each.counted is not None and each.counted.steady]
        idle = [rank for rank, counted in steady if not counted.model_flops]
        if 0 < len(idle) < len(steady):
            yield f"{_named(idle)} counted no FLOPs in the last counted step, and others did: do they watch the model?"

    def __str__(self) -> str:
        told = "unknown" if self.mfu is None else f"MFU {100 * self.mfu:.3g} %"
        over = f"over {len(self.ranks)} of {self.world_size} ranks"
        parts = [f"{told} {over}"]
        if self.step is not None and not self.complete:
            parts.append(f"up to step {self.step}")
        if self.lowest is not None and self.lowest.mfu is not None:
            parts.append(f"lowest {100 * self.lowest.mfu:.3g} % on rank {self.lowest.rank}")
        step_s = max((each.duration_s / each.timed_steps for each in self.ranks if each.timed_steps), default=0.0)
        if self.late is not None and self.late[1] > _WORTH_SAYING * step_s:
            parts.append(f"the others wait {1e3 * self.late[1]:.3g} ms a step for rank {self.late[0]}")
        if self.starved is not None and self.starved[1] > _WORTH_SAYING * step_s:
            parts.append(f"rank {self.starved[0]} waits {1e3 * self.starved[1]:.3g} ms a step longer for data")
        return ", ".join(parts)


def _spelled(by_flops: Mapping[int, list[int]]) -> str:
    usual_first = sorted(by_flops.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    said = [f"{flops:,} on {_named(ranks)}" for flops, ranks in usual_first[:_MOST_NAMED]]
    return ", ".join(said) + (", …" if len(usual_first) > _MOST_NAMED else "")


def _named(ranks: list[int]) -> str:
    if len(ranks) > _MOST_NAMED:
        return f"{len(ranks)} ranks"
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
