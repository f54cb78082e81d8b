"""The registry of names as OpenTelemetry's weaver reads one: docs/reference/registry, made of `mfu_sdk/semconv.py`.

The form is version 1 of the semantic convention schema (https://github.com/open-telemetry/weaver at afa9700c,
schemas/semconv-syntax.md and semconv.schema.json): groups of attributes, entities, spans and metrics. Names that
OpenTelemetry owns are references into its own registry, on which this one depends; `gen_ai.*`, which we send only
where MFU_GEN_AI asks for it, is in a third and left out. Units of attributes and bounds of histograms, which the schema
has no field for, are annotations.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args, get_type_hints

import yaml

from mfu_sdk import semconv
from mfu_sdk.drift.stream import Measure
from mfu_sdk.export.sampling import Reason
from mfu_sdk.records import Convention, CountSource, DriftCause, DriftEvent, Phase
from mfu_sdk.requests import Outcome

UPSTREAM: Final = "1.44.0"
"""The release of OpenTelemetry's registry that names which are not ours are looked up in."""

SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{UPSTREAM}"

REQUIRED: Final[Mapping[semconv.Place, tuple[str, ...]]] = {
    "resource": (
        semconv.SERVICE_NAME, semconv.SERVICE_INSTANCE_ID, semconv.RUN_ID, semconv.RUN_ATTEMPT, semconv.WORKLOAD_NAME,
        semconv.DIST_RANK, semconv.DIST_WORLD_SIZE, semconv.HW_NAME, semconv.DISTRO_NAME, semconv.DISTRO_VERSION,
    ),
    "run": (semconv.CONVENTION, semconv.COUNT_UNCOUNTED, semconv.RUN_OVERHEAD, semconv.RUN_STEP_COUNT),
    "window": (
        semconv.PHASE, semconv.CONVENTION, semconv.WINDOW_STEP_FIRST, semconv.WINDOW_STEP_COUNT,
        semconv.WINDOW_STEP_TIMED, semconv.WINDOW_STEP_UNKNOWN, semconv.WINDOW_STEP_DURATIONS,
        semconv.WINDOW_STEP_UTILIZATIONS,
    ),
    "step": (semconv.STEP_INDEX, semconv.PHASE, semconv.CONVENTION, semconv.SAMPLE_REASON),
    "inference": (semconv.MODEL_CALLS, semconv.REQUEST_OUTCOME, semconv.SAMPLE_REASON),
    "prefill": (semconv.PHASE, semconv.MODEL_FLOP, semconv.HARDWARE_FLOP, semconv.MODEL_CALLS),
    "decode": (semconv.PHASE, semconv.MODEL_FLOP, semconv.HARDWARE_FLOP, semconv.MODEL_CALLS),
    "calibration": (),
    "drift": (
        semconv.PHASE, semconv.DRIFT_KIND, semconv.DRIFT_MEASURE, semconv.DRIFT_CHANGE, semconv.DRIFT_SCORE,
        semconv.DRIFT_THRESHOLD, semconv.DRIFT_ONSET_STEP, semconv.DRIFT_FOUND_STEP, semconv.DRIFT_DETECTOR,
        semconv.DRIFT_CAUSE, semconv.DRIFT_EVIDENCE, semconv.DRIFT_DIFF,
    ),
    "metric": (),
}  # fmt: skip
"""What is always there; everything else is there where it is known."""

IDENTIFYING: Final = frozenset({
    semconv.SERVICE_INSTANCE_ID, semconv.RUN_ID, semconv.RUN_ATTEMPT, semconv.DIST_RANK,
})  # fmt: skip
"""What tells one process of a run from another; the rest of the resource describes it."""

MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    semconv.PHASE: get_args(Phase),
    semconv.CONVENTION: get_args(Convention),
    semconv.COUNT_SOURCE: get_args(CountSource),
    semconv.SAMPLE_REASON: get_args(Reason),
    semconv.REQUEST_OUTCOME: get_args(Outcome),
    semconv.DRIFT_KIND: get_args(get_type_hints(DriftEvent)["kind"]),
    semconv.DRIFT_MEASURE: get_args(Measure),
    semconv.DRIFT_CAUSE: get_args(DriftCause),
    semconv.STEP_COMPONENT: ("total", "data", "device"),
    semconv.SDK_THREAD: ("step", "export"),
    semconv.DROP_REASON: ("queue_full", "rejected", "budget", "exit"),
}
"""Closed vocabularies."""

EXAMPLES: Final[Mapping[str, str | list[str]]] = {
    semconv.RUN_ID: "0197f1b0-6a5e-4c7e-9d0a-3f2f5a1f7c11",
    semconv.WORKLOAD_NAME: "llama-8b-pretrain",
    semconv.WORKLOAD_FAMILY: "9f2c61d0a7b34e58",
    semconv.CONFIG_INTENT: "51d8e0c2b6f94a37",
    semconv.CONFIG_FINGERPRINT: "c07a49be12d3f586",
    semconv.MODEL_CLASS: "llama",
    semconv.ALLOCATION_ID: "slurm-4711",
    semconv.MIG_UUID: "MIG-2f5ac3c8-0f4e-5a43-8a0c-5d3f2f3a7f10",
    semconv.MIG_PROFILE: "3g.40gb",
    semconv.TOPOLOGY_LINK: "nvlink",
    semconv.TOPOLOGY_LINK_BEST: "nvlink",
    semconv.TENANT_ID: "acme",
    semconv.PEAK_SOURCE: "calibrated",
    semconv.PEAK_DTYPE: "bfloat16",
    semconv.CALIBRATION_TIER: "burst",
    semconv.CALIBRATION_DEGRADED: "power brake",
    semconv.CALIBRATION_ID: "5d1c2a90",
    semconv.COUNT_UNCOUNTED: ["acme::kernel"],
    semconv.THROTTLE_REASONS: ["software power cap"],
    semconv.DRIFT_DETECTOR: "betting-sr/1",
    semconv.DRIFT_EVIDENCE: ["batch: 32 → 16"],
    semconv.DRIFT_DIFF: ["batch: 32 → 16"],
}
"""Of attributes that are text and have no closed vocabulary; the schema asks for one each."""


def pages() -> dict[str, str]:
    """The registry's files by name."""
    return {
        "manifest.yaml": _yaml(_manifest()),
        "attributes.yaml": _yaml({"groups": [_attributes()]}),
        "resource.yaml": _yaml({"groups": [_entity()]}),
        "spans.yaml": _yaml({"groups": [_span(kind) for kind in semconv.SPANS.values()]}),
        "metrics.yaml": _yaml(
            {"groups": [_metric(metric) for metric in semconv.METRICS.values() if ours(metric.name)]}
        ),
    }


def ours(name: str) -> bool:
    """Whether we define it."""
    return name.startswith("mfu.")


def _manifest() -> dict[str, Any]:
    return {
        "name": semconv.SCOPE,
        "description": "Model FLOP Utilization of training and inference: what mfu_sdk sends and the provider reads.",
        # It says which registry this is, and of which version; nothing is there to be fetched.
        "schema_url": f"https://mfu-sdk.example/schemas/{semconv.SCHEMA_VERSION}",
        "dependencies": [
            {
                "schema_url": SCHEMA_URL,
                "registry_path": f"https://github.com/open-telemetry/semantic-conventions@v{UPSTREAM}[model]",
            }
        ],
    }


def _attributes() -> dict[str, Any]:
    defined = [each for each in semconv.ATTRIBUTES.values() if ours(each.name)]
    return {
        "id": "registry.mfu",
        "type": "attribute_group",
        "display_name": "MFU attributes",
        "brief": "Every attribute of ours. One that is not known is absent, never zero.",
        "attributes": [_attribute(each) for each in defined],
    }


def _attribute(of: semconv.Attribute) -> dict[str, Any]:
    members = MEMBERS.get(of.name)
    found: dict[str, Any] = {
        "id": of.name,
        "type": of.type if members is None else {"members": [_member(value) for value in members]},
        "stability": "development",
        "brief": of.brief,
    }
    if members is None and of.type.startswith("string"):
        example = EXAMPLES[of.name]
        found["examples"] = [example]
    if of.unit:
        found["annotations"] = {"unit": of.unit}
    return found


def _member(value: str) -> dict[str, str]:
    return {"id": value, "value": value, "stability": "development"}


def _entity() -> dict[str, Any]:
    return {
        "id": "entity.mfu.process",
        "type": "entity",
        "name": "mfu.process",
        "stability": "development",
        "brief": "One process of a monitored run: the resource of everything that it sends.",
        "attributes": [
            {**reference, "role": "identifying" if reference["ref"] in IDENTIFYING else "descriptive"}
            for reference in _references("resource")
        ],
    }


def _span(of: semconv.SpanKind) -> dict[str, Any]:
    place = of.name.removeprefix("mfu.")
    return {
        "id": f"span.{of.name}",
        "type": "span",
        "span_kind": "internal",
        "stability": "development",
        "brief": f"Sent {of.brief}.",
        "entity_associations": ["mfu.process"],
        "attributes": list(_references(place)),
    }


def _metric(of: semconv.Metric) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": f"metric.{of.name}",
        "type": "metric",
        "metric_name": of.name,
        "instrument": of.kind,
        "unit": of.unit,
        "stability": "development",
        "brief": of.brief,
        "entity_associations": ["mfu.process"],
        "attributes": [_reference(name, required=name in semconv.ALWAYS_ON_METRICS) for name in of.labels],
    }
    if of.bounds:
        found["annotations"] = {"bucket_bounds": list(of.bounds)}
    return found


def _references(place: Any) -> Iterable[dict[str, Any]]:
    for name, registered in semconv.ATTRIBUTES.items():
        if place in registered.on and not name.startswith("gen_ai."):
            yield _reference(name, required=name in REQUIRED[place])


def _reference(name: str, *, required: bool) -> dict[str, Any]:
    return {
        "ref": name,
        "requirement_level": "required" if required else {"conditionally_required": "where it is known"},
    }


def _yaml(content: Mapping[str, Any]) -> str:
    made = "# Made by `docs/generate.py` from `mfu_sdk/semconv.py`; change that file, then run it.\n"
    return made + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
