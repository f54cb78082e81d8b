"""What may go to the provider: numbers, ids and words of closed vocabularies; what is not listed stays home.

A flight recorder keeps no more than that either, since its file outlives the process.
"""

import builtins
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from mfu_sdk import semconv
from mfu_sdk.records import PHASES, StepRecord

RESOURCE: Final = frozenset(
    name
    for name, registered in semconv.ATTRIBUTES.items()
    if "resource" in registered.on and name not in (semconv.TENANT_ID, semconv.MODEL_CLASS)
) | {
    "service.namespace",
    "service.version",
    "deployment.environment.name",
    "host.id",
    "host.type",
    "cloud.provider",
    "cloud.platform",
    "cloud.account.id",
    "cloud.region",
    "cloud.availability_zone",
    "k8s.cluster.name",
    "k8s.cluster.uid",
    "k8s.namespace.name",
    "k8s.node.uid",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.container.name",
    "k8s.job.name",
    "k8s.job.uid",
    "telemetry.sdk.name",
    "telemetry.sdk.language",
    "telemetry.sdk.version",
}
"""Names of the resource: who and where, not how it was started (`process.*`) nor what else somebody has written into
OTEL_RESOURCE_ATTRIBUTES (labels and annotations of a pod, owners, tickets)."""


def resource(attributes: Mapping[str, object], *, model_class: bool = False) -> dict[str, str | int]:
    """The part of a resource's `attributes` that may go; what kind of model it is, with the tenant's consent only."""
    return {
        name: value
        for name, value in attributes.items()
        if (name in RESOURCE or (model_class and name == semconv.MODEL_CLASS))
        and isinstance(value, str | int)
        and not isinstance(value, bool)
    }


SPANS: Final = frozenset(
    {semconv.SPAN_RUN, semconv.SPAN_WINDOW, semconv.SPAN_STEP, semconv.SPAN_CALIBRATION, semconv.SPAN_DRIFT}
)
"""Spans of requests are none of the provider's: they are single calls of the tenant's users, in the trace of whoever
called; what they add up to is in the windows."""

_WORDS: Final[Mapping[str, re.Pattern[str]]] = {
    semconv.PHASE: re.compile("|".join(PHASES)),
    semconv.PEAK_DTYPE: re.compile("[a-z][a-z0-9_]{1,23}"),
    semconv.COUNT_SOURCE: re.compile("measured|cached|predicted|sampled"),
    semconv.CONVENTION: re.compile("exact|full"),
    semconv.SAMPLE_REASON: re.compile("all|periodic|first|last|error|recorder"),
    # Of an excursion the cause goes, and what of the configuration changed stays with who changed it.
    semconv.DRIFT_KIND: re.compile("drop|rise"),
    semconv.DRIFT_MEASURE: re.compile("flop_rate|token_rate|efficiency"),
    semconv.DRIFT_DETECTOR: re.compile(r"[a-z-]{1,24}/\d{1,4}"),
    semconv.DRIFT_CAUSE: re.compile(
        "configuration_drift|thermal_or_power|straggler|input_bound|load|accounting|unknown"
    ),
    semconv.CALIBRATION_TIER: re.compile("burst|sustained|in situ"),
    semconv.CALIBRATION_ID: re.compile("[0-9a-f-]{1,40}"),
    semconv.PEAK_SOURCE: re.compile("calibrated|user|(prior|theory).*"),
    # As `peak.nvml` names the bits; one that it has no name for is a number.
    semconv.THROTTLE_REASONS: re.compile(
        "application clocks|software power cap|hardware slowdown|sync boost|software thermal slowdown|"
        "hardware thermal slowdown|power brake|display clocks|board limit|reliability|0x[0-9a-f]{1,16}"
    ),
    semconv.ERROR_TYPE: re.compile(
        "_OTHER|SIGTERM|OutOfMemoryError|"
        + "|".join(name for name, kind in vars(builtins).items() if isinstance(kind, type) and name.endswith("Error"))
        + "|KeyboardInterrupt|SystemExit|GeneratorExit|StopIteration"
    ),
}
"""Attributes that are no numbers, and what each may say. A class of the tenant's own says more than that."""

_OTHERWISE: Final = {semconv.ERROR_TYPE: "_OTHER", semconv.PEAK_SOURCE: "user"}
"""What stands for a word that is not among them; else the attribute is left out."""


def step(of: StepRecord) -> StepRecord:
    """`of` as its metrics may tell it: their labels have one word that a tenant can choose, a denominator's dtype."""
    if of.peak_dtype is None or _WORDS[semconv.PEAK_DTYPE].fullmatch(of.peak_dtype):
        return of
    return replace(of, peak_dtype=None)


NUMBERS: Final = frozenset(
    name
    for name, registered in semconv.ATTRIBUTES.items()
    if registered.type in ("int", "double", "int[]") and name.startswith("mfu.")
)

_Value = TypeVar("_Value")


def attributes(of: Mapping[str, _Value]) -> dict[str, _Value | str]:
    """The part of a span's attributes that may go, with words that are not in their vocabulary replaced."""
    found: dict[str, _Value | str] = {}
    for name, value in of.items():
        words = _WORDS.get(name)
        said: list[object] = value if isinstance(value, list) else [value]
        if name in NUMBERS or (words is not None and all(words.fullmatch(str(each)) for each in said)):
            found[name] = value
        elif name in _OTHERWISE:
            found[name] = _OTHERWISE[name]
    return found
