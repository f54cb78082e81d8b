"""Explains how a witness's count differs from ours, operator by operator and to the FLOP.

A rule gives the FLOPs that it explains, worked out apart from the difference: from the calls' arguments, from our own
split of the count, or from what the witness itself lists as unsupported. What no rule explains is left over and said.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mfu_sdk.counting.lines import Line
from mfu_sdk.counting.traced import FvcoreSaw
from mfu_sdk.counting.witnesses import Observed, TorchSaw

RULES: Final[Mapping[str, str]] = {
    "masked": "masked pairs, priced as if attended",
    "no_formula": "no formula: counts nothing",
    "in_place": "no formula for the in-place form",
    "recompute": "recomputed by checkpointing",
    "optimizer": "the optimizer's products",
    "fifth": "the backward makes the scores again",
    "groups": "weight gradient not divided by groups",
    "complex": "a complex multiply-add is 8 FLOPs, not 2",
    "layout": "lengths and heads exchanged",
    "sharded": "global shapes of sharded tensors",
    "users": "your formula (register_flops)",
    "covered": "beneath a function that has one price",
    "elementwise": "elementwise work, free here",
    "broadcast": "the right operand's batch is left out",
    "unsupported": "lists {} as unsupported",
}
"""What explains a difference, in a few words; `docs/how-to/verify.md` has the evidence for each."""


@dataclass(frozen=True, slots=True)
class Reason:
    """`flops` of the witness's count less ours are there because of `rule`; `words` says it to a reader."""

    rule: str
    flops: int
    words: str


@dataclass(frozen=True, slots=True)
class Row:
    """One operator: our model FLOPs and a witness's. `ours` is None where this package has no price for it.

    `unexplained` is what is left of `theirs` - `ours` after all reasons, 0 where everything is explained.
    """

    op: str
    calls: int
    ours: int | None
    theirs: int
    reasons: tuple[Reason, ...]

    @property
    def unexplained(self) -> int:
        """FLOPs of the difference that no reason explains; negative where the witness has too few."""
        return self.theirs - (self.ours or 0) - sum(reason.flops for reason in self.reasons)


def beside_torch(observed: Observed, saw: TorchSaw) -> tuple[Row, ...]:
    """Our count of the step beside FlopCounterMode's, largest first."""
    lines = defaultdict(list)
    for line in observed.lines:
        lines[line.op].append(line)
    return _sorted(_beside_torch(op, lines[op], saw) for op in {*lines, *saw.totals})


def _beside_torch(op: str, lines: list[Line], saw: TorchSaw) -> Row:
    calls, ours = sum(line.calls for line in lines), _model(lines)
    theirs, executed, astray = saw.totals.get(op, 0), saw.executed.get(op, 0), saw.astray.get(op, {})
    reasons = []
    if not theirs and not executed and not astray:
        # Whatever we count here, torch has no formula that could.
        reasons.append(_reason("no_formula", -(ours or 0)))
    elif ours is not None:
        reasons.append(_reason("masked", sum(line.full - line.exact for line in lines if _is_model(line))))
        reasons += [
            _reason(stage, sum(line.every_pair for line in lines if line.stage == stage))
            for stage in ("recompute", "optimizer")
        ]
        reasons += [_reason(rule, flops) for rule, flops in astray.items() if rule != "users"]
        if saw.sharded:
            reasons.append(_reason("sharded", theirs - executed))
        if "users" in astray:
            known = ours + sum(reason.flops for reason in reasons)
            reasons.append(_reason("users", theirs - known))
    return Row(op, calls, ours, theirs, tuple(reason for reason in reasons if reason.flops))


# --- fvcore: what a trace calls an operator, and what it is made of --------------------------------------------------

_PRODUCTS: Final = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "einsum"})
_ELEMENTWISE: Final = frozenset(
    {"batch_norm", "group_norm", "layer_norm", "instance_norm", "upsample_nearest2d", "upsample_bilinear2d",
     "adaptive_avg_pool2d", "grid_sampler"}
)  # fmt: skip
# Operators of a trace that multiply matrices, and that fvcore has no handle for.
_MULTIPLIES: Final = re.compile(
    r"aten::(\w*(lstm|gru|rnn_tanh|rnn_relu|rnn|attention|transformer_encoder)\w*|\w*grouped_mm\w*|_?scaled_mm\w*|"
    r"\w*(mv|dot|bilinear|addbmm|baddbmm|inner|outer|tensordot|kron|cdist|conv\w*|int_mm|pack_mm\w*|addr|ger|fft\w*|"
    r"linalg\w*|multi_dot|chain_matmul|sparse\w*))|prim::PythonOp\..*|(?!aten::|prim::).*"
)


def beside_fvcore(saw: FvcoreSaw) -> tuple[Row, ...]:
    """Our count of one forward beside fvcore's, its multiply-adds taken twice, by kind of operator."""
    ours: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in saw.lines:
        kind = _kind(line.op)
        ours[kind, line.module.removeprefix("_Adapter").removeprefix(".")].append(line)
    theirs: Counter[tuple[str, str]] = Counter()
    for (module, op), number in saw.counts.items():
        kind = "matrix products" if op in _PRODUCTS else "convolutions" if op == "conv" else op
        theirs[kind, module] += number if op in _ELEMENTWISE else 2 * number
    unsupported: defaultdict[str, set[str]] = defaultdict(set)
    for module, op in saw.unsupported:
        if _MULTIPLIES.fullmatch(op):
            unsupported[module].add(op.removeprefix("aten::"))
    rows = []
    for kind in {kind for kind, _ in (*ours, *theirs)}:
        modules = {module for of, module in (*ours, *theirs) if of == kind}
        parts = [
            _beside_fvcore(kind, ours[kind, module], theirs[kind, module], unsupported[module]) for module in modules
        ]
        rows.append(_merged(kind, parts))
    return _sorted(
        replace(row, reasons=(*row.reasons, _reason("broadcast", saw.broadcast)))
        if saw.broadcast and row.op == "matrix products"
        else row
        for row in rows
    )


def _beside_fvcore(kind: str, lines: list[Line], theirs: int, unsupported: set[str]) -> Row:
    ours, reasons = _model(lines), []
    if kind in _ELEMENTWISE:
        reasons.append(_reason("elementwise", theirs))
    rest = []
    for line in lines:
        # Scores of plain products may be part of the attention that the trace has as one operator.
        names = (line.op.rpartition("::")[2].strip("_"), *(("attention",) if line.full else ()))
        missing = sorted(op for op in unsupported if op.strip("_") == names[0] or any(name in op for name in names[1:]))
        if missing:
            reasons.append(_reason("unsupported", -(line.dense + line.exact), missing[0]))
        else:
            rest.append(line)
    if rest and not theirs and unsupported:
        reasons.append(_reason("unsupported", -(_model(rest) or 0), ", ".join(sorted(unsupported))))
    else:
        reasons.append(_reason("masked", sum(line.full - line.exact for line in rest)))
        reasons.append(_reason("complex", sum(-3 * line.dense // 4 for line in rest if "complex" in line.dtype)))
    return Row(kind, sum(line.calls for line in lines), ours, theirs, tuple(r for r in reasons if r.flops))


def _kind(op: str) -> str:
    name = op.rpartition("::")[2]
    if name in _PRODUCTS or name in ("baddbmm", "mv", "dot", "addmv", "addbmm"):
        return "matrix products"
    return "convolutions" if "conv" in name else op


def _merged(kind: str, rows: Iterable[Row]) -> Row:
    """One row of several modules' rows of a kind."""
    rows = list(rows)
    sums: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for reason in row.reasons:
            sums[reason.rule, reason.words] += reason.flops
    ours = None if any(row.ours is None for row in rows) else sum(row.ours or 0 for row in rows)
    reasons = tuple(Reason(rule, flops, words) for (rule, words), flops in sums.items())
    return Row(kind, sum(row.calls for row in rows), ours, sum(row.theirs for row in rows), reasons)


def _is_model(line: Line) -> bool:
    return line.stage in ("forward", "backward")


def _model(lines: Iterable[Line]) -> int | None:
    lines = list(lines)
    if any(not line.known for line in lines):
        return None
    return sum(line.dense + line.exact for line in lines if _is_model(line))


def _reason(rule: str, flops: int, what: str = "") -> Reason:
    return Reason(rule, flops, RULES[rule].format(what))


def _sorted(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-max(row.ours or 0, row.theirs), row.op)))
