"""What a step's span tells: what neighbouring steps have alike, and what is each one's own."""

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Final

from mfu_sdk import semconv
from mfu_sdk.export.attributes import TYPES, attributes, double
from mfu_sdk.export.encode import Common, Value
from mfu_sdk.export.sampling import Kept
from mfu_sdk.records import StepRecord

# By attribute, the record's field that it is.
_FIELDS: Final[Mapping[str, str]] = {
    semconv.STEP_INDEX: "index",
    semconv.PHASE: "phase",
    semconv.UTILIZATION: "mfu",
    semconv.HARDWARE_UTILIZATION: "hfu",
    semconv.ACHIEVABLE_UTILIZATION: "achievable_mfu",
    semconv.DTYPE_UTILIZATION: "mfu_by_dtype",
    semconv.EXPECTED: "expected_mfu",
    semconv.EXPECTED_LOW: "expected_low_mfu",
    semconv.EXPECTED_HIGH: "expected_high_mfu",
    semconv.EXPECTED_FEASIBLE: "expected_feasible_mfu",
    semconv.MODEL_FLOP: "model_flops",
    semconv.HARDWARE_FLOP: "hardware_flops",
    semconv.AVAILABLE_FLOP: "available_flops",
    semconv.ATTENTION_FLOP_EXACT: "attention_flops_exact",
    semconv.ATTENTION_FLOP_FULL: "attention_flops_full",
    semconv.PEAK_FLOP_RATE: "peak_flops_per_s",
    semconv.PEAK_SOURCE: "peak_source",
    semconv.PEAK_DTYPE: "peak_dtype",
    semconv.COUNT_SOURCE: "count_source",
    semconv.COUNT_COVERAGE: "coverage",
    semconv.CONVENTION: "convention",
    semconv.STEP_DATA_TIME: "data_wait_s",
    semconv.STEP_DEVICE_TIME: "device_s",
    semconv.TOKEN_COUNT: "tokens",
    semconv.SAMPLE_COUNT: "samples",
    semconv.REQUEST_COUNT: "requests",
    semconv.REQUEST_FAILED: "requests_failed",
    semconv.REQUEST_TIME: "requests_s",
    semconv.REQUEST_RUNNING: "requests_running",
    semconv.BATCH_RUNNING: "batch_running",
    semconv.BATCH_FEASIBLE: "batch_feasible",
    semconv.QUEUE_WAITING: "queue_waiting",
    semconv.KV_CACHE_FREE_RATIO: "kv_cache_free_ratio",
    semconv.LATENCY_TARGET: "latency_target_s",
    semconv.ARITHMETIC_INTENSITY: "arithmetic_intensity",
    semconv.ERROR_TYPE: "error_type",
}
# What steps of the same work against the same peak have alike.
_COMMON: Final = frozenset({
    semconv.PHASE, semconv.EXPECTED, semconv.EXPECTED_LOW, semconv.EXPECTED_HIGH, semconv.MODEL_FLOP,
    semconv.HARDWARE_FLOP, semconv.ATTENTION_FLOP_EXACT, semconv.ATTENTION_FLOP_FULL, semconv.PEAK_FLOP_RATE,
    semconv.PEAK_SOURCE, semconv.PEAK_DTYPE, semconv.COUNT_SOURCE, semconv.COUNT_COVERAGE, semconv.CONVENTION,
    semconv.TOKEN_COUNT, semconv.SAMPLE_COUNT, semconv.ARITHMETIC_INTENSITY,
})  # fmt: skip
# What only steps of inference tell.
_LOAD: Final = frozenset({
    semconv.REQUEST_COUNT, semconv.REQUEST_FAILED, semconv.REQUEST_TIME, semconv.REQUEST_RUNNING,
    semconv.BATCH_FEASIBLE, semconv.QUEUE_WAITING, semconv.KV_CACHE_FREE_RATIO, semconv.LATENCY_TARGET,
})  # fmt: skip
# Steps are the many: what is to be done with an attribute is looked up for all of them at once.
_OWN: Final = tuple(name for name in _FIELDS if name not in _COMMON | _LOAD)
OWN_DOUBLES: Final = tuple(name for name in _OWN if TYPES["step"][name] is double)
"""Those of a step's own attributes that are doubles: they come first, in this order."""
_OTHERS: Final = tuple((name, TYPES["step"][name]) for name in _OWN if name not in OWN_DOUBLES)
_LOADS: Final = tuple(name for name in _FIELDS if name in _LOAD)
_NO_LOAD: Final = (None,) * len(_LOADS)
_ALIKE: Final = tuple(name for name in _FIELDS if name in _COMMON)
doubles_of: Final = attrgetter(*[_FIELDS[name] for name in OWN_DOUBLES])
_others_of: Final = attrgetter(*[_FIELDS[name] for name, _ in _OTHERS])
_load_of: Final = attrgetter(*[_FIELDS[name] for name in _LOADS])
_alike_of: Final = attrgetter(*[_FIELDS[name] for name in _ALIKE])


def alike(step: StepRecord, kept: Kept) -> tuple[object, ...]:
    """The values that steps of the same work have in common; equal ones make equal attributes."""
    return (*_alike_of(step), kept.reason, kept.ratio)


def common(values: tuple[object, ...]) -> Common:
    """The attributes of what is `alike`."""
    named = dict(zip((*_ALIKE, semconv.SAMPLE_REASON, semconv.SAMPLE_RATIO), values, strict=True))
    return Common(attributes("step", named))


def plain(step: StepRecord) -> bool:
    """Whether its own attributes are those of `OWN_DOUBLES` that it knows and its index, if they are all finite."""
    return step.timed and _load_of(step) == _NO_LOAD


def own(step: StepRecord) -> dict[str, Value]:
    """The attributes that no other step has to have alike, doubles first; a step that was not timed has no FLOPs to
    be held against.
    """
    found: dict[str, Value] = {}
    total = 0.0
    for name, value in zip(OWN_DOUBLES, doubles_of(step), strict=True):
        if value is not None:
            total += value
            found[name] = float(value)
    # One sum tells that all are finite; where it is not, it may only have grown too large.
    if not math.isfinite(total):
        found = {name: value for name, value in found.items() if math.isfinite(value)}  # type: ignore[arg-type]
    if semconv.AVAILABLE_FLOP in found and not step.timed:
        del found[semconv.AVAILABLE_FLOP]
    for (name, as_registered), value in zip(_OTHERS, _others_of(step), strict=True):
        if value is not None and (typed := as_registered(value)) is not None:
            found[name] = typed
    load = _load_of(step)
    if load != _NO_LOAD:
        found |= attributes("step", dict(zip(_LOADS, load, strict=True)))
    return found
