"""How does MFU differ by GPU type, for the same work?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.questions.statistics import Estimate, paired
from mfu_sdk.provider.rollup import Sums, ratio, total

NO_INTENT = "no work that names its configuration (mfu.config.intent) ran on two GPU types: averages compare other work"


@dataclass(frozen=True, slots=True)
class FamilyOnType:
    """What one model structure reached on one GPU type."""

    gpu_type: str | None
    mfu: float | None
    expected_mfu: float | None
    gpu_hours: float | None


@dataclass(frozen=True, slots=True)
class FamilyByType:
    """One model structure on each of the GPU types that it ran on, two at least."""

    workload_family: str
    gpu_types: tuple[FamilyOnType, ...]


@dataclass(frozen=True, slots=True)
class MatchedTypes:
    """Two GPU types over the `intents` configurations that ran on both, each configuration weighing the same.

    `mfu_ratio` is the geometric mean of MFU on `gpu_type` / MFU on `base`, `rate_ratio` that of useful FLOP/s a
    device; 95 % intervals by Student's t over configurations. `crude_mfu_ratio` is of all work on either, whatever
    it was: where it differs from `mfu_ratio`, the mix of work does.
    """

    gpu_type: str
    base: str
    intents: int
    mfu_ratio: Estimate
    rate_ratio: Estimate | None
    crude_mfu_ratio: float | None


@dataclass(frozen=True, slots=True)
class ByGpuType:
    """By model structure, and matched by configuration; `matched_share` of the GPU-hours are in a comparison."""

    families: tuple[FamilyByType, ...] = ()
    matched: tuple[MatchedTypes, ...] = ()
    matched_share: float | None = None
    missing: tuple[str, ...] = ()
    picture: Picture | None = None


def answer(cells: Sequence[Cell]) -> ByGpuType:
    """From sums by GPU type, model structure, intent and phase."""
    by_work = works(cells)
    types = _most_hours_first(cells)
    matched = tuple(
        found
        for base, other in combinations(types, 2)
        if (found := compare(by_work, other, base, crude(cells, other, base))) is not None
    )
    both = [part for on in by_work.values() if len(on) > 1 for part in on.values()]
    share = ratio(total(both).device_s, total(cell.sums for cell in cells).device_s)
    return ByGpuType(
        _families(cells),
        matched,
        share,
        (NO_INTENT,) if len(types) > 1 and not matched else (),
        _picture(matched),
    )


def works(cells: Iterable[Cell]) -> dict[tuple[str, str | None], dict[str, Sums]]:
    """Sums by (intent, phase), then by GPU type, of cells that name both."""
    parts: dict[tuple[str, str | None], dict[str, list[Sums]]] = {}
    for cell in cells:
        if cell.intent is not None and cell.gpu_type is not None and cell.sums.mfu:
            parts.setdefault((cell.intent, cell.phase), {}).setdefault(cell.gpu_type, []).append(cell.sums)
    return {work: {name: total(sums) for name, sums in on.items()} for work, on in parts.items()}


def compare(
    by_work: dict[tuple[str, str | None], dict[str, Sums]], gpu_type: str, base: str, crude_ratio: float | None
) -> MatchedTypes | None:
    """`gpu_type` against `base` over the work that ran on both; None where there is none."""
    pairs = [(on[gpu_type], on[base]) for on in by_work.values() if gpu_type in on and base in on]
    mfu = paired([found for new, old in pairs if (found := ratio(new.mfu, old.mfu))])
    if mfu is None:
        return None
    rate = paired([found for new, old in pairs if (found := ratio(_rate(new), _rate(old)))])
    return MatchedTypes(gpu_type, base, len(pairs), mfu, rate, crude_ratio)


def crude(cells: Iterable[Cell], gpu_type: str, base: str) -> float | None:
    """MFU of all work on the one over that of all work on the other."""
    cells = tuple(cells)
    new, old = (total(cell.sums for cell in cells if cell.gpu_type == name) for name in (gpu_type, base))
    return ratio(new.mfu, old.mfu)


def _rate(sums: Sums) -> float | None:
    """Useful FLOP/s a device, over the time in which its FLOPs are known.

    Steps without FLOPs have time as well, so time comes from the share of steps that are known.
    """
    if not sums.timed_steps or sums.unknown_steps is None or sums.device_s is None:
        return ratio(sums.model_flops, sums.device_s)
    return ratio(sums.model_flops, sums.device_s * (1 - sums.unknown_steps / sums.timed_steps))


def _most_hours_first(cells: Iterable[Cell]) -> list[str]:
    hours: dict[str, float] = {}
    for cell in cells:
        if cell.gpu_type is not None:
            hours[cell.gpu_type] = hours.get(cell.gpu_type, 0.0) + (cell.sums.device_s or 0.0)
    return sorted(hours, key=lambda name: (-hours[name], name))


def _families(cells: Iterable[Cell]) -> tuple[FamilyByType, ...]:
    parts: dict[str, dict[str | None, list[Sums]]] = {}
    for cell in cells:
        if cell.family is not None:
            parts.setdefault(cell.family, {}).setdefault(cell.gpu_type, []).append(cell.sums)
    return tuple(
        FamilyByType(
            family,
            tuple(
                FamilyOnType(name, sums.mfu, sums.expected_mfu, sums.device_hours)
                for name, sums in ((name, total(of)) for name, of in on.items())
            ),
        )
        for family, on in sorted(parts.items())
        if len(on) > 1
    )


def _picture(matched: tuple[MatchedTypes, ...]) -> Picture | None:
    if not matched:
        return None
    points = tuple(
        Point(f"{each.gpu_type} / {each.base}", each.mfu_ratio.value, None, each.mfu_ratio.low, each.mfu_ratio.high)
        for each in matched
    )
    return Picture("points", "MFU of the same work", "GPU types", "ratio of MFU", (Series("matched", points),), 1.0)
