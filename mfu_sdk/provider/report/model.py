"""What a report holds, and its JSON: the shape is public (docs/reference), fields that are not known are null.

`gpus` counts devices, so a processor that was measured counts as one; `gpu_hours` are hours of timed steps on them.
`*_flop` are FLOPs. Every `mfu` is `model_flop` / `available_flop` beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.questions import (
    ByGpuType,
    ByScale,
    LowWorkloads,
    NewHardware,
    Questions,
    Scaling,
    UnderBatching,
)
from mfu_sdk.provider.rollup import Requests, ratio

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What every level says of itself. `unknown_steps` of the `timed_steps` are in neither sum of FLOPs."""

    mfu: float | None
    expected_mfu: float | None
    model_flop: float | None
    available_flop: float | None
    gpus: int
    gpu_hours: float | None
    steps: float | None
    timed_steps: float | None
    unknown_steps: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """The report's range: `since` is in it, `until` is not; ISO 8601 in UTC."""

    since: str
    until: str


@dataclass(frozen=True, slots=True)
class Factors:
    """FleetMFU = allocation × runtime × step; the first two need an inventory and are None without one."""

    allocation: float | None
    runtime: float | None
    step: float | None


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """MFU over one bucket of time that starts `at`; None where nothing was observed in it."""

    at: str
    mfu: float | None
    model_flop: float | None
    available_flop: float | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet over observed time; what needs an inventory of owned devices is None without one."""

    mfu: float | None
    owned_mfu: float | None
    factors: Factors
    observed_share: float | None
    model_flop: float | None
    available_flop: float | None
    gpus: int
    gpu_hours_observed: float | None
    expected_mfu: float | None
    steps: float | None
    timed_steps: float | None
    unknown_steps: float | None
    tokens: float | None
    trend: tuple[TrendPoint, ...]
    previous_mfu: float | None

    @property
    def unknown_share(self) -> float | None:
        """Share of the timed steps that is in neither sum of FLOPs."""
        return ratio(self.unknown_steps, self.timed_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Figures):
    """One host, whoever ran on it."""

    host: str | None
    gpu_types: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(Figures):
    """A tenant's workload on one GPU type at one world size.

    `coverage` is the least share of operator bytes that was priced in any of its windows; `uncounted` are the
    operators without a formula; `batch_running` is the mean batch over time.
    """

    tenant: str
    workload: str | None
    workload_family: str | None
    run_ids: tuple[str, ...]
    gpu_type: str | None
    world_size: int | None
    batch_running: float | None
    coverage: float | None
    uncounted: tuple[str, ...]
    peak_dtypes: tuple[str, ...]
    peak_sources: tuple[str, ...]
    conventions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType(Figures):
    """One GPU type, by the name that its driver gives it."""

    gpu_type: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """A fleet, or one tenant's part of it, over a window. `economics` and `causes` are not reckoned, hence None."""

    window: Window
    fleet: Fleet
    nodes: tuple[Node, ...]
    workloads: tuple[Workload, ...]
    gpu_types: tuple[GpuType, ...]
    scaling: tuple[Scaling, ...]
    inference: tuple[Requests, ...]
    questions: Questions
    causes: None = None
    economics: None = None

    @property
    def least_coverage(self) -> float | None:
        """The least share of operator bytes that was priced in any workload that says; None where none does."""
        return min((w.coverage for w in self.workloads if w.coverage is not None), default=None)


_LATER: Final = (LowWorkloads, ByGpuType, ByScale, UnderBatching, NewHardware)
"""Answers that an older report lacks, or tells as a list."""


def to_json(report: Report) -> str:
    """The report as JSON; non-finite numbers cannot occur in it."""
    return json.dumps(asdict(report), ensure_ascii=False, indent=2, allow_nan=False)


def from_json(text: str) -> Report:
    """The report that `to_json` wrote, by this version or another: what it does not know is left out or None.

    Raises `ConfigurationError` where the text is no report.
    """
    try:
        return _read(Report, json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"{text[:40]!r}…: not a report ({error}); ask a provider's /api/report") from error


def _read(kind: type[T], value: Any) -> T:
    names = get_type_hints(kind)
    if value is None and kind in _LATER:
        return kind()
    if isinstance(value, list) and kind in _LATER:
        # Before an answer said more than its rows it was the list of them, which is now its first field.
        value = {next(iter(names)): value}
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind.__name__} must be an object")
    return kind(**{name: _field(hint, value.get(name)) for name, hint in names.items()})


def _field(hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        return tuple(_field(get_args(hint)[0], item) for item in value or ())
    if isinstance(hint, type) and is_dataclass(hint):
        return _read(hint, value)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    types = tuple(kind for kind in kinds if isinstance(kind, type))
    for kind in types:
        if is_dataclass(kind) and value is not None:
            return _read(kind, value)
    if any(get_origin(kind) is Literal and value in get_args(kind) for kind in kinds):
        return value
    # JSON has one kind of number: 1.0 may come back as 1.
    if not isinstance(value, (*types, int) if float in types else types):
        raise TypeError(f"{value!r} where {hint} belongs")
    return value
