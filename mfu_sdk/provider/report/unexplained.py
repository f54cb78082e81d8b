"""Shortfalls without a named cause, apart from causes that somebody can act on, and what would tell more of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.model import Cause

_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Unexplained:
    """`rows`, largest losses first, and the signals that their runs do not tell, each once."""

    rows: tuple[Cause, ...]
    not_told: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Which they are, the largest by name, in a sentence."""
        named = [f"{words.name(row.workload, 40)}{_phase(row)} ({words.percent(row.loss_share)})" for row in self.rows]
        more = len(named) - _SHOWN
        which = ", ".join(named[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        what = "shortfall has" if len(named) == 1 else "shortfalls have"
        return f"{len(named):,} {what} no cause that is known: {which}."

    @property
    def remedy(self) -> str:
        """What would tell more, in a sentence; code in `backticks`."""
        tell = f"; not told of each of them: {', '.join(self.not_told)}" if self.not_told else ""
        return f"A profile of some steps would tell more (`run.summary().waterfall` says where their time went){tell}."


def parted(causes: Sequence[Cause]) -> tuple[tuple[Cause, ...], Unexplained | None]:
    """`causes` that have a name, in their order; the others together, None where there are none."""
    rows = tuple(sorted((c for c in causes if c.cause == "unknown"), key=lambda c: -c.loss_share))
    named = tuple(c for c in causes if c.cause != "unknown")
    return named, Unexplained(rows, _not_told(rows)) if rows else None


def _not_told(rows: Iterable[Cause]) -> tuple[str, ...]:
    told = (str(row.evidence.get("not_told", "")).split(", ") for row in rows)
    return tuple(dict.fromkeys(signal for signals in told for signal in signals if signal))


def _phase(row: Cause) -> str:
    return f", {words.name(row.phase, 20)}" if row.phase is not None and row.phase != "train" else ""
