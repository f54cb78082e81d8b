"""`mfu verify`: our count of a user's own step beside torch's and fvcore's, each difference explained."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mfu_sdk.errors import ConfigurationError, MissingDependencyError


@dataclass(frozen=True, slots=True)
class Line:
    """One operator in a table: FLOPs here and of the witness; `why` holds (FLOPs of theirs less ours, why)."""

    op: str
    calls: int
    ours: int | None
    theirs: int
    why: tuple[tuple[int, str, str], ...]
    unexplained: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our count of `work` beside that of one witness, in FLOPs."""

    witness: str
    work: str
    ours: int
    theirs: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """What `mfu verify` found: the count, a comparison for each witness that answered, and notes on those that did not.

    `uncounted` holds (operator, calls, module) for work that has no price here.
    """

    target: str
    work: str
    model_flops: int
    hardware_flops: int
    coverage: float
    uncounted: tuple[tuple[str, int, str], ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def unexplained(self) -> int:
        """How many rows differ by something that no rule explains."""
        return sum(line.unexplained != 0 for each in self.comparisons for line in each.lines)

    @property
    def good(self) -> bool:
        """Whether everything was counted and every difference has its reason."""
        return not self.unexplained and not self.uncounted and self.model_flops > 0

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "unexplained": self.unexplained, "good": self.good}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Verification:
        """What `as_json` gave."""
        comparisons = []
        for each in plain["comparisons"]:
            lines = tuple(Line(**{**line, "why": tuple(map(tuple, line["why"]))}) for line in each["lines"])
            comparisons.append(Comparison(**{**each, "lines": lines}))
        return cls(
            **{name: plain[name] for name in ("target", "work", "model_flops", "hardware_flops", "coverage")},
            uncounted=tuple(map(tuple, plain["uncounted"])),
            comparisons=tuple(comparisons),
            notes=tuple(plain["notes"]),
        )


def verify(target: str, arguments: Sequence[str] = (), *, forward_only: bool = False) -> Verification:
    """Run `target` in a process of its own, and compare the counts of its first step.

    `target` is a script (`train.py`), run as it is with `arguments` until its first optimizer step; or
    `package.module:callable` or `file.py:callable`, called without arguments. Raises `ConfigurationError` where there
    is no such target or it fails by itself, `MissingDependencyError` without torch.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch is not installed: verifying runs under it; pip install torch")
    found = _run(target, arguments, forward_only=forward_only, why_no_torch="")
    if isinstance(found, str):
        # torch's counter runs at once with ours, so an error of its own looks like one of the program's: without it,
        # the program shows whose it was.
        print(f"mfu: failed under torch's counter ({found}); again without it", file=sys.stderr)  # noqa: T201
        note = f"torch FlopCounterMode: failed on this program ({found})"
        found = _run(target, arguments, forward_only=forward_only, why_no_torch=note)
    assert not isinstance(found, str)
    return found


def _run(target: str, arguments: Sequence[str], *, forward_only: bool, why_no_torch: str) -> Verification | str:
    with tempfile.TemporaryDirectory(prefix="mfu-verify-") as folder:
        answer = Path(folder, "answer.json")
        given = {"answer": str(answer), "forward_only": forward_only, "why_no_torch": why_no_torch}
        # What the program prints is not what this command prints.
        command = [sys.executable, "-m", "mfu_sdk.counting.subject", json.dumps(given), target, *arguments]
        ended = subprocess.run(command, stdout=2, check=False, env={**os.environ, "MFU_ENABLED": "0"})  # noqa: S603
        if not answer.exists():
            raise ConfigurationError(
                f"{target}: its process ended with {ended.returncode} before its first step was over; "
                "make it run by itself first"
            )
        said = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in said:
        raise ConfigurationError(said["error"])
    if "failed" in said:
        return str(said["failed"])
    return replace(Verification.from_json(said), target=target)


# --- what a person reads ---------------------------------------------------------------------------------------------


def describe(found: Verification, width: int, *, color: bool) -> str:
    """The comparisons as tables of at most `width` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width, force_terminal=color, color_system="standard" if color else None, highlight=False,
                      file=io.StringIO(), record=True)  # fmt: skip
    console.print(Text(f"{found.target}: {found.work}", style="bold"))
    console.print(
        f"{found.model_flops:,} model FLOPs, {found.hardware_flops:,} executed, coverage {found.coverage:.1%}"
    )
    for each in found.comparisons:
        table = Table(box=box.SIMPLE_HEAD, title=Text(f"beside {each.witness}, {each.work}"), title_justify="left",
                      title_style="bold", show_footer=True, pad_edge=False)  # fmt: skip
        table.add_column("operator", Text("all"), no_wrap=True)
        for name, total in (("calls", ""), ("ours", _short(each.ours)), ("theirs", _short(each.theirs))):
            table.add_column(name, Text(total), justify="right", no_wrap=True)
        table.add_column("why theirs differs", Text(_ratio(each.theirs, each.ours)), overflow="fold", ratio=1)
        for line in each.lines:
            table.add_row(
                Text(line.op.removeprefix("aten::")), str(line.calls or ""), _short(line.ours), _short(line.theirs),
                Text("\n").join(_why(line)),
            )  # fmt: skip
        console.print(table)
    for note in found.notes:
        console.print(Text(f"note  {note}"))
    for op, calls, module in found.uncounted:
        console.print(Text(f"BAD   {op}: not counted, {calls} × in {module or 'no module'}; price it with "
                           "mfu.register_flops", style="red"))  # fmt: skip
    if not found.model_flops:
        console.print(Text("BAD   nothing that has FLOPs ran", style="red"))
    elif found.unexplained:
        console.print(Text(f"BAD   {found.unexplained} differences are not explained", style="red"))
    elif found.good and found.comparisons:
        console.print(Text("ok    every difference is explained", style="green"))
    return "\n".join(line.rstrip() for line in console.export_text(styles=color).rstrip("\n").splitlines())


def _why(line: Line) -> list[Any]:
    from rich.text import Text

    words = [Text(f"{_signed(flops)}  {text}") for flops, _, text in line.why]
    if line.ours is None:
        words.insert(0, Text("not counted here", style="red"))
    if line.unexplained:
        words.append(Text(f"{_signed(line.unexplained)}  NOT EXPLAINED", style="red"))
    return words or [Text("same", style="dim")]


def _ratio(theirs: int, ours: int) -> str:
    return "" if not ours else "the same in all" if theirs == ours else f"{theirs / ours:.3g} × ours"


def _signed(flops: int) -> str:
    return f"{'+' if flops > 0 else '−'}{_short(abs(flops))}"


def _short(flops: int | None) -> str:
    """Four digits and a prefix; small numbers as they are."""
    if flops is None:
        return "?"
    if flops < 100_000:
        return f"{flops:,}"
    value = float(flops)
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.95 or prefix == "E":
            break
        value /= 1000
    return f"{value:.4g} {prefix}".rstrip()
