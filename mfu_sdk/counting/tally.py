"""Adds up what operators cost, into a `Count`."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final, Literal

from mfu_sdk.counting.formulas import FORMULA_VERSION, FREE, Cost
from mfu_sdk.records import Convention, Count, OpCost, Uncounted

Stage = Literal["forward", "backward", "recompute", "optimizer"]

_MOST_KINDS: Final = 4096
"""Kinds of operator calls listed apart in a `Count`; a step of a large model has some hundreds."""
_MOST_CALLS: Final = 65_536
"""Kinds of calls, by module and stage, that are kept before they are folded into sums."""


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """What each call of an operator with certain shapes costs; `known` says whether it has a price.

    `sent` is what a collective is handed, in bytes; such a call is in no other sum. Without `sized`, nobody knows how
    much it moves: as all that was priced may be next to nothing beside it, coverage is then zero.
    """

    op: str
    dtype: str
    cost: Cost
    bytes_moved: int
    known: bool = True
    sent: int | None = None
    sized: bool = True
    weight_bytes: int = 0


@dataclass(slots=True, eq=False)
class Line:
    """One product that may yet prove to be attention scores: what it was added as, and where."""

    priced: Priced
    module: str
    stage: Stage


@dataclass(slots=True)
class _Sums:
    """The sums of a `Count`, as far as they were folded."""

    stages: Counter[Stage] = field(default_factory=Counter)
    hardware: int = 0
    exact: int = 0
    full: int = 0
    bytes_moved: int = 0
    bytes_known: int = 0
    unsized: int = 0
    by_dtype: Counter[str] = field(default_factory=Counter)
    by_module: Counter[str] = field(default_factory=Counter)
    by_op: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str, int, int, int]] = field(default_factory=Counter)
    rest: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, priced: Priced, module: str, stage: Stage, calls: int, convention: Convention) -> None:
        """Add so many calls; a negative number takes them back."""
        if priced.sent is not None:
            self.sent[priced.op] += calls * priced.sent
            return
        cost = priced.cost
        moved = calls * priced.bytes_moved
        self.bytes_moved += moved
        if priced.known:
            self.bytes_known += moved
        else:
            self.uncounted[priced.op, module] += calls
            self.unsized += 0 if priced.sized else calls
        kind = (priced.op, priced.dtype, cost.hardware, priced.bytes_moved, priced.weight_bytes)
        if kind in self.kinds or len(self.kinds) < _MOST_KINDS:
            self.kinds[kind] += calls
        else:
            rest = self.rest.setdefault((priced.op, priced.dtype), [0, 0, 0, 0])
            for i, each in enumerate((cost.hardware, priced.bytes_moved, priced.weight_bytes, 1)):
                rest[i] += calls * each
        if cost is FREE:
            return
        self.hardware += calls * cost.hardware
        if stage in ("recompute", "optimizer"):
            # These are the hardware's only.
            self.stages[stage] += calls * cost.hardware
            return
        model = calls * cost.model(convention)
        early = calls * cost.early if stage == "forward" else 0
        self.stages[stage] += model - early
        self.stages["backward"] += early
        self.exact += calls * cost.exact
        self.full += calls * cost.full
        self.by_dtype[priced.dtype] += model
        self.by_module[module] += model
        self.by_op[priced.op] += model


class Tally:
    """The calls of one counted piece of work. Not safe for threads: the counting mode holds a lock.

    `calls` maps (kind of call, module, stage) to a number of calls, which is all that the path of an operator adds to.
    """

    def __init__(self, convention: Convention) -> None:
        self.convention: Convention = convention
        self.calls: defaultdict[tuple[Priced, str, Stage], int] = defaultdict(int)
        self._folded: _Sums | None = None

    def reprice(self, line: Line, pairs: int, of: int) -> None:
        """A product proved to be attention scores, of which the mask lets through `pairs` of `of`: charge those."""
        old = line.priced
        full = old.cost.dense + old.cost.full
        cost = Cost(dense=0, hardware=old.cost.hardware, exact=full * pairs // of if of else full, full=full)
        new = Priced(old.op, old.dtype, cost, old.bytes_moved)
        self.calls[old, line.module, line.stage] -= 1
        self.calls[new, line.module, line.stage] += 1
        line.priced = new

    def was_recomputed(self, line: Line) -> None:
        """What was added as backward proved to be a forward that ran again."""
        if line.stage == "backward":
            self.calls[line.priced, line.module, line.stage] -= 1
            line.stage = "recompute"
            self.calls[line.priced, line.module, line.stage] += 1

    def bound(self) -> None:
        """Keep memory bounded whatever the shapes: fold the calls into sums once there are too many kinds."""
        if len(self.calls) > _MOST_CALLS:
            if self._folded is None:
                self._folded = _Sums()
            self._fold(self._folded)
            self.calls.clear()

    @property
    def has_work(self) -> bool:
        """Whether anything that was added cost FLOPs."""
        folded = self._folded
        return (folded is not None and folded.hardware > 0) or any(
            calls and priced.cost.hardware for (priced, _, _), calls in self.calls.items()
        )

    def count(self) -> Count:
        """What was added so far. Past `_MOST_KINDS`, further kinds are one mean kind for each operator and dtype."""
        # Most counts never had so many kinds.
        sums = _Sums() if self._folded is None else deepcopy(self._folded)
        self._fold(sums)
        stages = sums.stages
        kinds = [
            OpCost(op, dtype, flops, moved, calls, weights)
            for (op, dtype, flops, moved, weights), calls in sums.kinds.items()
            if calls
        ]
        kinds += [
            OpCost(*key, flops // n, moved // n, n, weights // n)
            for key, (flops, moved, weights, n) in sums.rest.items()
            if n
        ]
        uncounted = {key: calls for key, calls in sums.uncounted.items() if calls}
        return Count(
            model_flops=stages["forward"] + stages["backward"],
            hardware_flops=sums.hardware,
            forward_flops=stages["forward"],
            backward_flops=stages["backward"],
            recompute_flops=stages["recompute"],
            optimizer_flops=stages["optimizer"],
            attention_flops_exact=sums.exact,
            attention_flops_full=sums.full,
            by_dtype=_positive(sums.by_dtype),
            by_module=_positive(sums.by_module),
            by_op=_positive(sums.by_op),
            uncounted=tuple(Uncounted(op, calls, module) for (op, module), calls in sorted(uncounted.items())),
            coverage=_coverage(sums, uncounted),
            bytes_moved=sums.bytes_moved,
            comm_bytes=dict(sums.sent),
            convention=self.convention,
            ops=tuple(kinds),
            formula_version=FORMULA_VERSION,
        )

    def _fold(self, sums: _Sums) -> None:
        # Of a copy: a finaliser that runs meanwhile may add to it.
        for (priced, module, stage), calls in tuple(self.calls.items()):
            sums.add(priced, module, stage, calls, self.convention)


def _coverage(sums: _Sums, uncounted: Mapping[tuple[str, str], int]) -> float:
    if sums.unsized:
        return 0.0
    return sums.bytes_known / sums.bytes_moved if sums.bytes_moved else float(not uncounted)


def _positive(sums: Counter[str]) -> dict[str, int]:
    return {name: flops for name, flops in sums.items() if flops}
