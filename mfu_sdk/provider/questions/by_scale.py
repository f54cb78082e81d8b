"""How does MFU change with scale: weak and strong scaling apart, each with a fit and its intervals?"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log2
from typing import Final, Literal

from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.questions.statistics import Estimate, Fit, fit_relative
from mfu_sdk.provider.rollup import ratio, total

SAME_TOKENS: Final = 0.05
"""Steps are of the same size where their tokens differ by less than this share: a last batch is often short."""

Kind = Literal["weak", "strong"]

NO_TOKENS: Final = "steps without tokens (mfu.token.count): weak and strong scaling cannot be told apart, so no fit"


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """MFU at one world size over `runs` runs, and as a share of the MFU at the smallest; the mean of its step times."""

    world_size: int
    mfu: float | None
    parallel_efficiency: float | None
    runs: int | None = None
    step_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """Seconds of a step at W ranks, T(W) = a + b / W + c · log2 W, each run a point, with 95 % intervals.

    `divided_s` (b) is the work that ranks share out, `fixed_s` (a) what each does whatever W is, `each_doubling_s` (c)
    what a doubling adds. Under weak scaling a rank's work is the same at each W, so that b is in a and `divided_s` is
    None. Errors are relative. `next_efficiency` is the parallel efficiency expected at `next_size` ranks, twice the
    most that were seen: an extrapolation, its interval that of the fit alone.
    """

    fixed_s: Estimate
    divided_s: Estimate | None
    each_doubling_s: Estimate
    runs: int
    degrees: int
    next_size: int
    next_efficiency: Estimate | None


@dataclass(frozen=True, slots=True)
class Scaling:
    """One model structure on one GPU type, over the world sizes that it ran at.

    `kind` says what was kept: under weak scaling the tokens of a rank's step, under strong those of all ranks', which
    are `tokens_per_step`; None where tokens are not known, or no other size has the same.
    """

    workload_family: str
    gpu_type: str | None
    points: tuple[ScalePoint, ...]
    phase: str | None = None
    kind: Kind | None = None
    tokens_per_step: float | None = None
    fit: ScaleFit | None = None


@dataclass(frozen=True, slots=True)
class ByScale:
    """The curves of more than one size."""

    curves: tuple[Scaling, ...] = ()
    missing: tuple[str, ...] = ()
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    cell: Cell
    ranks: int
    tokens: float | None

    @property
    def step_s(self) -> float | None:
        return ratio(self.cell.sums.device_s, self.cell.sums.timed_steps)


def curves(cells: Iterable[Cell]) -> tuple[Scaling, ...]:
    """Every curve, those of one size too, from sums by run."""
    groups: dict[tuple[str, str | None, str | None], list[_Run]] = {}
    for cell in cells:
        if cell.family is not None and cell.world_size:
            run = _Run(cell, cell.world_size, ratio(cell.sums.tokens, cell.sums.steps) or None)
            groups.setdefault((cell.family, cell.gpu_type, cell.phase), []).append(run)
    found: list[Scaling] = []
    for (family, gpu_type, phase), runs in sorted(groups.items(), key=lambda item: tuple(n or "" for n in item[0])):
        for kind, tokens, members in _apart(runs):
            points = _points(members)
            fit = _fitted(kind, members) if kind else None
            found.append(Scaling(family, gpu_type, points, phase, kind, tokens, fit))
    return tuple(found)


def answer(of: Sequence[Scaling]) -> ByScale:
    """From all curves."""
    several = tuple(curve for curve in of if len(curve.points) > 1)
    missing = []
    if any(curve.kind is None for curve in several):
        missing.append(NO_TOKENS)
    if not several:
        missing.append("no model structure (mfu.workload.family) ran at two world sizes")
    return ByScale(several, tuple(missing), _picture(several))


def _apart(runs: Sequence[_Run]) -> list[tuple[Kind | None, float | None, list[_Run]]]:
    """Runs whose steps have the same tokens a rank, then those with the same tokens over all ranks, then the rest."""
    left = [run for run in runs if run.tokens is not None]
    found: list[tuple[Kind | None, float | None, list[_Run]]] = []
    kinds: tuple[tuple[Kind, Callable[[_Run], float]], ...] = (
        ("weak", lambda run: run.tokens or 0.0),
        ("strong", lambda run: (run.tokens or 0.0) * run.ranks),
    )
    for kind, size in kinds:
        for members in _alike(left, size):
            if len({run.ranks for run in members}) > 1:
                found.append((kind, sum(map(size, members)) / len(members), members))
                left = [run for run in left if run not in members]
    found += [(None, None, members) for members in _alike(left, lambda run: run.tokens or 0.0)]
    silent = [run for run in runs if run.tokens is None]
    return found + ([(None, None, silent)] if silent else [])


def _alike(runs: Iterable[_Run], size: Callable[[_Run], float]) -> list[list[_Run]]:
    groups: list[list[_Run]] = []
    for run in sorted(runs, key=size):
        if groups and size(run) <= size(groups[-1][0]) * (1 + SAME_TOKENS):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _points(runs: Iterable[_Run]) -> tuple[ScalePoint, ...]:
    sizes: dict[int, list[_Run]] = {}
    for run in runs:
        sizes.setdefault(run.ranks, []).append(run)
    levels = [
        (size, total(run.cell.sums for run in of), len({run.cell.run_id for run in of})) for size, of in sizes.items()
    ]
    levels.sort(key=lambda level: level[0])
    first = levels[0][1].mfu
    return tuple(
        ScalePoint(size, sums.mfu, ratio(sums.mfu, first), number, ratio(sums.device_s, sums.timed_steps))
        for size, sums, number in levels
    )


def _row(kind: Kind, ranks: float) -> tuple[float, ...]:
    return (1.0, log2(ranks)) if kind == "weak" else (1.0, 1 / ranks, log2(ranks))


def _fitted(kind: Kind, runs: Sequence[_Run]) -> ScaleFit | None:
    timed = [(run.ranks, seconds) for run in runs if (seconds := run.step_s)]
    sizes = sorted({ranks for ranks, _ in timed})
    if len(sizes) < len(_row(kind, 1)):
        return None
    fit = fit_relative([_row(kind, ranks) for ranks, _ in timed], [seconds for _, seconds in timed])
    if fit is None:
        return None
    strong = kind == "strong"
    return ScaleFit(
        fit.coefficient(0),
        fit.coefficient(1) if strong else None,
        fit.coefficient(2 if strong else 1),
        len(timed),
        fit.degrees,
        2 * sizes[-1],
        _efficiency(fit, kind, sizes[0], 2 * sizes[-1]),
    )


def _efficiency(fit: Fit, kind: Kind, first: int, size: int) -> Estimate | None:
    start, then = fit.at(_row(kind, first)).value, fit.at(_row(kind, size))
    # A rank's share of the work at `size`, over that at `first`.
    share = start * (first / size if kind == "strong" else 1.0)
    if then.value <= 0 or share <= 0:
        return None
    low = None if then.high is None else share / then.high
    high = None if then.low is None or then.low <= 0 else share / then.low
    return Estimate(share / then.value, low, high)


def _picture(of: Sequence[Scaling]) -> Picture | None:
    if not of:
        return None
    series = tuple(
        Series(
            " ".join(name for name in (curve.workload_family, curve.gpu_type, curve.phase, curve.kind) if name),
            tuple(Point(str(p.world_size), p.parallel_efficiency, float(p.world_size)) for p in curve.points),
        )
        for curve in of
    )
    return Picture("lines", "Efficiency with scale", "ranks", "MFU over that at the smallest size", series, 1.0)
