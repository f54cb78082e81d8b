"""Adds up what operators cost, into a `Count`."""

from collections import Counter
from dataclasses import dataclass, field

from mfu_sdk.counting.formulas import FORMULA_VERSION, Cost
from mfu_sdk.counting.place import Place
from mfu_sdk.records import Convention, Count, OpCost, Uncounted

_MOST_KINDS = 4096
"""Kinds of operator calls kept apart; a step of a large model has some hundreds."""


@dataclass(slots=True)
class Line:
    """One product that may yet prove to be attention scores: where it was added, and at what cost."""

    place: Place
    op: str
    dtype: str
    cost: Cost


@dataclass(slots=True)
class Tally:
    """Running sums of one counted piece of work. Not safe for threads: the counting mode holds a lock."""

    convention: Convention
    forward: int = 0
    backward: int = 0
    recompute: int = 0
    optimizer: int = 0
    hardware: int = 0
    attention_exact: int = 0
    attention_full: int = 0
    bytes_moved: int = 0
    bytes_known: int = 0
    by_dtype: Counter[str] = field(default_factory=Counter)
    by_module: Counter[str] = field(default_factory=Counter)
    by_op: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[tuple[str, str]] = field(default_factory=Counter)
    comm_bytes: Counter[str] = field(default_factory=Counter)
    _kinds: Counter[tuple[str, str, int, int]] = field(default_factory=Counter)
    _rest: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Add an operator's FLOPs at its stage: the optimizer's and recomputed ones are hardware's only."""
        cost, stage = line.cost, line.place.stage
        self.hardware += cost.hardware
        if stage == "recompute":
            self.recompute += cost.hardware
        elif stage == "optimizer":
            self.optimizer += cost.hardware
        else:
            self._model(line, cost.model(self.convention))
            if stage == "forward":
                self.forward -= cost.early
                self.backward += cost.early
            self.attention_exact += cost.exact
            self.attention_full += cost.full

    def reprice(self, line: Line, pairs: int, of: int) -> None:
        """A product proved to be attention scores, of which the mask lets through `pairs` of `of`: charge those."""
        old = line.cost
        full = old.dense + old.full
        line.cost = new = Cost(dense=0, hardware=old.hardware, exact=full * pairs // of if of else full, full=full)
        if line.place.stage in ("recompute", "optimizer"):
            return
        self._model(line, new.model(self.convention) - old.model(self.convention))
        self.attention_exact += new.exact - old.exact
        self.attention_full += new.full - old.full

    def executed(self, op: str, dtype: str, flops: int, bytes_moved: int, *, known: bool) -> None:
        """Add one executed call to the list that a roofline reads; `known` says whether it has a price."""
        self.bytes_moved += bytes_moved
        self.bytes_known += bytes_moved if known else 0
        kind = (op, dtype, flops, bytes_moved)
        if kind in self._kinds or len(self._kinds) < _MOST_KINDS:
            self._kinds[kind] += 1
        else:
            rest = self._rest.setdefault((op, dtype), [0, 0, 0])
            for i, more in enumerate((flops, bytes_moved, 1)):
                rest[i] += more

    def count(self) -> Count:
        """What was added so far. Past `_MOST_KINDS`, further kinds are one mean kind for each operator and dtype."""
        kinds = [OpCost(*kind, calls) for kind, calls in self._kinds.items()]
        kinds += [OpCost(*key, flops // n, moved // n, n) for key, (flops, moved, n) in self._rest.items()]
        return Count(
            model_flops=self.forward + self.backward,
            hardware_flops=self.hardware,
            forward_flops=self.forward,
            backward_flops=self.backward,
            recompute_flops=self.recompute,
            optimizer_flops=self.optimizer,
            attention_flops_exact=self.attention_exact,
            attention_flops_full=self.attention_full,
            by_dtype=_positive(self.by_dtype),
            by_module=_positive(self.by_module),
            by_op=_positive(self.by_op),
            uncounted=tuple(Uncounted(op, calls, module) for (op, module), calls in sorted(self.uncounted.items())),
            coverage=self.bytes_known / self.bytes_moved if self.bytes_moved else float(not self.uncounted),
            bytes_moved=self.bytes_moved,
            comm_bytes=dict(self.comm_bytes),
            convention=self.convention,
            ops=tuple(kinds),
            formula_version=FORMULA_VERSION,
        )

    def _model(self, line: Line, flops: int) -> None:
        if line.place.stage == "forward":
            self.forward += flops
        else:
            self.backward += flops
        self.by_dtype[line.dtype] += flops
        self.by_module[line.place.module] += flops
        self.by_op[line.op] += flops


def _positive(sums: Counter[str]) -> dict[str, int]:
    return {name: flops for name, flops in sums.items() if flops}
