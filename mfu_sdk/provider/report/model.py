"""What a report holds, and its JSON: the shape is public (docs/reference), fields that are not known are null.

`gpus` counts devices, so a processor that was measured counts as one; `gpu_hours` are hours of timed steps on them.
`*_flop` are FLOPs. Every `mfu` is `model_flop` / `available_flop` beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.economics import Economics, Stage
from mfu_sdk.provider.fleet import FleetUse
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
from mfu_sdk.provider.shared import Comparison

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
    """FleetMFU = allocation × runtime × step, weighted by peak; the first two are None without an inventory.

    With one the product is `owned_mfu` and `step` is at the reference peak, as that is; without it is `mfu`.
    """

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
    """The fleet over observed time; what needs an inventory of owned devices is None without one.

    `observed_share` is the share of owned GPU-hours on devices that sent steps of known FLOPs,
    `allocated_observed_share` that of the hours that somebody held.
    """

    mfu: float | None
    owned_mfu: float | None
    factors: Factors
    observed_share: float | None
    allocated_observed_share: float | None
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
class Cause:
    """Why a workload is low: what it costs as a share, how sure that is (0..1), what shows it, and what to do.

    `loss_share` is of the step time; of the allocated hours for `idle_allocation`, of its GPU for `mig_fragmentation`,
    of the FLOPs that are claimed for `accounting`. Units are in the names of the `evidence`. `state` is open,
    acknowledged or muted.
    """

    tenant: str
    workload: str | None
    run_id: str | None
    cause: str
    loss_share: float
    confidence: float
    evidence: Mapping[str, float | str]
    remedy: str
    gpu_type: str | None
    world_size: int | None
    phase: str | None
    state: str


@dataclass(frozen=True, slots=True)
class SharedCause:
    """A cause that `workloads` of the `of_workloads` at one place have, and a share `elsewhere` of all others.

    `kind` is driver, image, node, pool or zone.
    """

    cause: str
    kind: str
    place: str
    workloads: int
    of_workloads: int
    elsewhere: float
    tenants: int


@dataclass(frozen=True, slots=True)
class Report:
    """A fleet, or one tenant's part of it, over a window.

    `causes_left_out` says which causes could not be reckoned, and why, by name. `shared_causes` are told to those who
    see the whole fleet. `economics` needs the provider's books, and is None with `economics_missing` saying what is.
    `hours` are the stages from owned to useful GPU-hours, which need the inventory alone; their costs are None without
    `economics`. `fleet_use` is told to those who see the whole fleet: tenants are not told of others' nodes.
    `contested` are steps on GPUs that are somebody else's; a tenant is told of its own, and not whose. `against_fleet`
    is told to a tenant: its work beside the same work of others.
    """

    window: Window
    fleet: Fleet
    nodes: tuple[Node, ...]
    workloads: tuple[Workload, ...]
    gpu_types: tuple[GpuType, ...]
    scaling: tuple[Scaling, ...]
    inference: tuple[Requests, ...]
    questions: Questions
    causes: tuple[Cause, ...] = ()
    causes_left_out: Mapping[str, str] = field(default_factory=dict)
    shared_causes: tuple[SharedCause, ...] = ()
    economics: Economics | None = None
    economics_missing: str | None = None
    hours: tuple[Stage, ...] = ()
    fleet_use: FleetUse | None = None
    contested: tuple[Contested, ...] = ()
    against_fleet: Comparison | None = None

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
    if get_origin(hint) is Mapping:
        of = get_args(hint)[1]
        return {str(name): _field(of, item) for name, item in dict(value or {}).items()}
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
