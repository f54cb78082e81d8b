"""An expectation in words, on one screen, and as plain data."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from mfu_sdk.records import Expectation, OpTime

_WIDTH = 110
_MOST_OPS = 5


def describe(found: Expectation, title: str = "") -> str:
    """What it takes, what binds it, which operators take most, and what was taken for granted."""
    peak = (found.peak_flops_per_s or 0.0) / 1e12
    total = found.time_s
    lines = [*([title] if title else []), f"  time         {_span(found.time_s, found.low_s, found.high_s)}, a step"]
    of = f"{peak:,.4g} TFLOP/s {found.peak_dtype} on {found.device}"
    lines.append(f"  MFU          {_percents(found.mfu, found.low_mfu, found.high_mfu)} of {of}")
    if found.mbu is not None:
        lines.append(f"  MBU          {_percent(found.mbu)}, bytes moved over (memory rate × time)")
    parts = {
        "compute": found.compute_s,
        "memory": found.memory_s,
        "communication": found.communication_s,
        "pipeline bubble": found.bubble_s,
    }
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items() if value)
    hidden = f"; {_seconds(found.hidden_s)} of communication hidden" if found.hidden_s else ""
    lines.append(f"  bound        {found.bound}: {shares}{hidden}")
    if found.tokens_per_s is not None:
        each = f", {found.tokens_per_s / found.devices:,.0f} a GPU" if found.devices > 1 else ""
        lines.append(f"  tokens       {found.tokens_per_s:,.0f} a second{each}")
    for op in heaviest(found):
        share = op.seconds / total
        lines.append(f"  {_seconds(op.seconds):>11}  {share:6.1%}  {op.bound:<13}  {op.op} {_typed(op)}×{op.calls:,}")
    for word, texts in (("not in it", found.missing), ("assumes", found.assumptions)):
        wrapped = [line for text in texts for line in textwrap.wrap(text, _WIDTH - 15, subsequent_indent="  ")]
        lines += [f"  {word if i == 0 else '':<12} {line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def as_json(found: Expectation) -> dict[str, Any]:
    """Everything as plain data; of the operators those that take most."""
    plain = asdict(found)
    plain["ops"] = [asdict(op) for op in heaviest(found)]
    return {**plain, "bound": found.bound}


def heaviest(found: Expectation) -> list[OpTime]:
    """The operators that take most, each with all of its sizes together; what is exchanged is counted as one too."""
    sums: dict[tuple[str, str, str], OpTime] = {}
    for op in found.ops:
        key = (op.op, op.dtype, op.bound)
        before = sums.get(key)
        calls, seconds = (0, 0.0) if before is None else (before.calls, before.seconds)
        sums[key] = OpTime(op.op, op.dtype, calls + op.calls, seconds + op.seconds, op.bound)
    return sorted(sums.values(), key=lambda op: -op.seconds)[:_MOST_OPS]


def _typed(op: OpTime) -> str:
    return "" if op.dtype == "none" else f"{op.dtype} "


def _span(value: float, low: float | None, high: float | None) -> str:
    return f"{_seconds(value)}  [{_bound(low)} .. {_bound(high)}]"


def _bound(value: float | None) -> str:
    return "unknown" if value is None else _seconds(value)


def _percents(value: float, low: float | None, high: float | None) -> str:
    ends = ["unknown" if end is None else _percent(end) for end in (low, high)]
    return f"{_percent(value)}  [{ends[0]} .. {ends[1]}]"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:,.4g} {unit}"
    return f"{value / 1e-9:,.3g} ns"
