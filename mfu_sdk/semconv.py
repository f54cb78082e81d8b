"""The one registry of span, attribute and metric names: the SDK writes them, the provider reads them.

Both halves import their names from here, the reference page is made from it, and a test holds the provider's SQL
columns against it. Names that OpenTelemetry owns (``hw.*``, ``host.*``, ``service.*``) keep its meaning; nothing of
ours lives in one of its namespaces. Units are UCUM, annotations in braces.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

SCOPE: Final = "mfu_sdk"
SCHEMA_VERSION: Final = "1.0.0"

Type = Literal["string", "int", "double", "boolean", "string[]", "int[]"]
Place = Literal["resource", "run", "window", "step", "inference", "prefill", "decode", "calibration", "drift", "metric"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: its wire name, type, UCUM unit ("" where none applies), meaning, and where it appears."""

    name: str
    type: Type
    unit: str
    brief: str
    on: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument: its wire name, kind, UCUM unit, meaning, explicit bucket bounds for a histogram, and the
    attributes that its points may have.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    brief: str
    bounds: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpanKind:
    """One kind of span: its name and when it is sent."""

    name: str
    brief: str


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event, a log record that has a name: the name, where its attributes are listed, when it is sent."""

    name: str
    place: Place
    brief: str


SPANS: dict[str, SpanKind] = {}
EVENTS: dict[str, Event] = {}
ATTRIBUTES: dict[str, Attribute] = {}
METRICS: dict[str, Metric] = {}


def _span(name: str, brief: str) -> str:
    SPANS[name] = SpanKind(name, brief)
    return name


def _event(name: str, place: Place, brief: str) -> str:
    EVENTS[name] = Event(name, place, brief)
    return name


def _attribute(name: str, kind: Type, unit: str, brief: str, *on: Place) -> str:
    ATTRIBUTES[name] = Attribute(name, kind, unit, brief, on)
    return name


def _metric(
    name: str, kind: Literal["counter", "gauge", "histogram"], unit: str, brief: str, bounds: tuple[float, ...] = ()
) -> str:
    METRICS[name] = Metric(name, kind, unit, brief, bounds)
    return name


def _labelled(labels: tuple[str, ...], *names: str) -> None:
    for name in names:
        METRICS[name] = replace(METRICS[name], labels=labels)


# --- spans ---------------------------------------------------------------------------------------------------------

SPAN_RUN: Final = _span("mfu.run", "once a monitored run, when it closes")
SPAN_WINDOW: Final = _span("mfu.window", "every 30 s of wall clock or 1,024 steps: sums and lossless arrays")
SPAN_STEP: Final = _span("mfu.step", "a training step or a part of a busy period of inference (see MFU_SPANS)")
SPAN_INFERENCE: Final = _span("mfu.inference", "a handled request, child of the caller's context")
SPAN_PREFILL: Final = _span("mfu.prefill", "a request's calls of the model on its prompt, child of mfu.inference")
SPAN_DECODE: Final = _span("mfu.decode", "a request's calls of the model for its answer, child of mfu.inference")
SPAN_CALIBRATION: Final = _span("mfu.calibration", "a measurement of the device's peak")
SPAN_DRIFT: Final = _span("mfu.drift", "an excursion from a run's own baseline, from onset to recovery or to the end")

# --- events --------------------------------------------------------------------------------------------------------

EVENT_DRIFT: Final = _event(
    "mfu.drift", "drift", "when an excursion is found (severity WARN), and again when it has recovered (INFO)"
)

# --- resource ------------------------------------------------------------------------------------------------------

SERVICE_NAME: Final = _attribute(
    "service.name", "string", "", "the workload's name unless OTEL_SERVICE_NAME is set", "resource"
)
SERVICE_INSTANCE_ID: Final = _attribute("service.instance.id", "string", "", "a UUID of this process", "resource")
RUN_ID: Final = _attribute("mfu.run.id", "string", "", "the run, the same on all ranks", "resource")
RUN_ATTEMPT: Final = _attribute("mfu.run.attempt", "int", "", "how often the run was restarted", "resource")
WORKLOAD_NAME: Final = _attribute("mfu.workload.name", "string", "", "what the user calls the work", "resource")
WORKLOAD_FAMILY: Final = _attribute("mfu.workload.family", "string", "", "a hash of the model's structure", "resource")
CONFIG_INTENT: Final = _attribute(
    "mfu.config.intent",
    "string",
    "",
    "a hash of what the tenant chose: model, batch, sequence, dtypes, parallel strategy; known from the first step on",
    "resource",
)
CONFIG_FINGERPRINT: Final = _attribute(
    "mfu.config.fingerprint",
    "string",
    "",
    "a hash of the whole configuration: the intent, versions, device and switches; known from the first step on",
    "resource",
)
DIST_RANK: Final = _attribute("mfu.dist.rank", "int", "", "this process's rank", "resource")
DIST_LOCAL_RANK: Final = _attribute("mfu.dist.local_rank", "int", "", "its rank on this host", "resource")
DIST_WORLD_SIZE: Final = _attribute("mfu.dist.world_size", "int", "", "how many ranks the run has", "resource")
DIST_AXES: Final = {
    axis: _attribute(
        f"mfu.dist.{axis}", "int", "", f"over how many ranks the run is {what}, where it shows", "resource"
    )
    for axis, what in (
        ("dp", "data-parallel"),
        ("tp", "tensor-parallel"),
        ("pp", "pipeline-parallel"),
        ("cp", "context-parallel"),
        ("ep", "expert-parallel"),
    )
}
"""The attribute of each axis of `ranks.AXES`."""
MODEL_CLASS: Final = _attribute(
    "mfu.model.class", "string", "", "what kind of model it is (llama, mixtral, vit), with consent only", "resource"
)
ALLOCATION_ID: Final = _attribute(
    "mfu.allocation.id", "string", "", "what the scheduler calls the allocation: a pod's UID or a Slurm job", "resource"
)
MIG_UUID: Final = _attribute("mfu.mig.uuid", "string", "", "the MIG slice", "resource")
MIG_PROFILE: Final = _attribute("mfu.mig.profile", "string", "", "its profile, such as 3g.40gb", "resource")
TOPOLOGY_LINK: Final = _attribute(
    "mfu.topology.link",
    "string",
    "",
    "the path that this rank's collectives take: nvlink, pcie, system, network or none",
    "resource",
)
TOPOLOGY_LINK_BEST: Final = _attribute(
    "mfu.topology.link.best", "string", "", "the best path between two devices of this machine, likewise", "resource"
)
HOST_NAME: Final = _attribute("host.name", "string", "", "the host", "resource")
HW_ID: Final = _attribute("hw.id", "string", "", "the device: a GPU or MIG UUID", "resource", "metric")
HW_NAME: Final = _attribute(
    "hw.name", "string", "", "the device's name as the driver gives it; a MIG slice's is its GPU's", "resource"
)
HW_PARENT: Final = _attribute("hw.parent", "string", "", "the UUID of the GPU that a MIG slice is of", "resource")
HW_VENDOR: Final = _attribute("hw.vendor", "string", "", "the device's vendor", "resource")
K8S_NODE_NAME: Final = _attribute(
    "k8s.node.name", "string", "", "the node, where a pod's host name is not it", "resource"
)
DISTRO_NAME: Final = _attribute("telemetry.distro.name", "string", "", "always mfu_sdk", "resource")
DISTRO_VERSION: Final = _attribute("telemetry.distro.version", "string", "", "the SDK's version", "resource")
TENANT_ID: Final = _attribute(
    "mfu.tenant.id",
    "string",
    "",
    "stamped by the receiver from the credential; a client's own value is overwritten",
    "resource",
)

# --- steps and windows ---------------------------------------------------------------------------------------------

STEP_INDEX: Final = _attribute("mfu.step.index", "int", "{step}", "the step's index in the run", "step")
PHASE: Final = _attribute(
    "mfu.phase",
    "string",
    "",
    "train, eval, prefill, decode, inference or checkpoint",
    "step",
    "window",
    "prefill",
    "decode",
    "drift",
    "metric",
)
UTILIZATION: Final = _attribute(
    "mfu.utilization", "double", "1", "model FLOPs / (peak × time)", "step", "window", "run"
)
HARDWARE_UTILIZATION: Final = _attribute(
    "mfu.hardware.utilization", "double", "1", "executed FLOPs / (peak × time)", "step", "window", "run"
)
ACHIEVABLE_UTILIZATION: Final = _attribute(
    "mfu.achievable.utilization", "double", "1", "model FLOPs / (measured peak × time)", "step", "window"
)
DTYPE_UTILIZATION: Final = _attribute(
    "mfu.dtype.utilization", "double", "1", "Σ (FLOPs of a dtype / that dtype's peak) / time", "step", "window"
)
EXPECTED: Final = _attribute(
    "mfu.expected", "double", "1", "MFU reachable by this work at this load, by roofline", "step", "window", "run"
)
EXPECTED_LOW: Final = _attribute(
    "mfu.expected.low",
    "double",
    "1",
    "the expected MFU with every rate at the lower end of its interval and nothing of the communication hidden",
    "step",
    "window",
)
EXPECTED_HIGH: Final = _attribute(
    "mfu.expected.high",
    "double",
    "1",
    "the expected MFU with every rate at the upper end of its interval and all communication hidden that can be",
    "step",
    "window",
)
MODEL_FLOP: Final = _attribute(
    "mfu.model.flop",
    "double",
    "{flop}",
    "FLOPs that the model needs, forward and backward",
    "step",
    "window",
    "run",
    "inference",
    "prefill",
    "decode",
)
HARDWARE_FLOP: Final = _attribute(
    "mfu.hardware.flop",
    "double",
    "{flop}",
    "FLOPs that ran, recomputation included",
    "step",
    "window",
    "run",
    "inference",
    "prefill",
    "decode",
)
AVAILABLE_FLOP: Final = _attribute("mfu.available.flop", "double", "{flop}", "peak × time", "step", "window", "run")
EXPECTED_FLOP: Final = _attribute(
    "mfu.expected.flop",
    "double",
    "{flop}",
    "expected MFU × available FLOPs, over steps that have an expectation",
    "window",
)
EXPECTED_AVAILABLE_FLOP: Final = _attribute(
    "mfu.expected.available.flop",
    "double",
    "{flop}",
    "available FLOPs of the steps that have an expectation",
    "window",
)
ATTENTION_FLOP_EXACT: Final = _attribute(
    "mfu.attention.flop.exact",
    "double",
    "{flop}",
    "attention FLOPs over the pairs that the mask lets through",
    "step",
    "window",
)
ATTENTION_FLOP_FULL: Final = _attribute(
    "mfu.attention.flop.full", "double", "{flop}", "attention FLOPs over all pairs", "step", "window"
)
PEAK_FLOP_RATE: Final = _attribute(
    "mfu.peak.flop_rate", "double", "{flop}/s", "the denominator's rate", "step", "window", "run", "calibration"
)
PEAK_SOURCE: Final = _attribute(
    "mfu.peak.source",
    "string",
    "",
    "where the denominator came from: calibrated, user, prior, or theory with its factors",
    "step",
    "window",
    "run",
    "calibration",
)
PEAK_DTYPE: Final = _attribute(
    "mfu.peak.dtype", "string", "", "the denominator's dtype", "step", "window", "run", "calibration", "metric"
)
PEAK_MEMORY_RATE: Final = _attribute(
    "mfu.peak.memory_rate", "double", "By/s", "bytes read and written a second", "window", "run", "calibration"
)
PEAK_FLOP_RATE_LOW: Final = _attribute(
    "mfu.peak.flop_rate.low", "double", "{flop}/s", "the lower end of a measured rate's interval", "calibration"
)
PEAK_FLOP_RATE_HIGH: Final = _attribute(
    "mfu.peak.flop_rate.high", "double", "{flop}/s", "the upper end of a measured rate's interval", "calibration"
)
CALIBRATION_TIER: Final = _attribute(
    "mfu.calibration.tier",
    "string",
    "",
    "burst: a first look; sustained: after a minute under load; in situ: between two steps of the run",
    "calibration",
)
CALIBRATION_CLOCK: Final = _attribute(
    "mfu.calibration.clock", "double", "Hz", "the device's clock while this dtype was measured", "calibration"
)
CALIBRATION_EFFICIENCY: Final = _attribute(
    "mfu.calibration.efficiency",
    "double",
    "1",
    "the measured rate over what the device could do at its clock: that which a kernel counted beside the work, else "
    "the driver's",
    "calibration",
)
CALIBRATION_DEGRADED: Final = _attribute(
    "mfu.calibration.degraded", "string", "", "what held the clock down for no fault of the work", "calibration"
)
CALIBRATION_ID: Final = _attribute(
    "mfu.calibration.id", "string", "", "the calibration that gave the peak", "run", "calibration"
)
COUNT_SOURCE: Final = _attribute(
    "mfu.count.source", "string", "", "measured, cached, predicted or sampled", "step", "inference"
)
COUNT_COVERAGE: Final = _attribute(
    "mfu.count.coverage", "double", "1", "share of operator bytes that was priced", "step", "window", "run"
)
COUNT_UNCOUNTED: Final = _attribute("mfu.count.uncounted", "string[]", "", "operators without a formula", "run")
CONVENTION: Final = _attribute("mfu.convention", "string", "", "exact or full attention pairs", "step", "window", "run")
STEP_DATA_TIME: Final = _attribute("mfu.step.data_time", "double", "s", "waiting for data", "step", "window", "run")
STEP_COMM_TIME: Final = _attribute(
    "mfu.step.comm_time",
    "double",
    "s",
    "exposed communication without skew, of all timed steps, by those in which it was timed",
    "window",
    "run",
)
STEP_SKEW_TIME: Final = _attribute(
    "mfu.step.skew_time",
    "double",
    "s",
    "waiting for ranks that came late, of all timed steps, likewise",
    "window",
    "run",
)
STEP_HOST_TIME: Final = _attribute(
    "mfu.step.host_time",
    "double",
    "s",
    "the device had nothing to do and waited for nobody, of all timed steps, likewise",
    "window",
    "run",
)
STEP_DEVICE_TIME: Final = _attribute(
    "mfu.step.device_time",
    "double",
    "s",
    "device busy, where it can be told; not measured by this version",
    "step",
    "window",
)
STEP_TIME: Final = _attribute("mfu.step.time", "double", "s", "Σ duration of the timed steps", "window", "run")
TOKEN_COUNT: Final = _attribute(
    "mfu.token.count", "int", "{token}", "tokens, a rank's share", "step", "window", "run", "inference"
)
SAMPLE_COUNT: Final = _attribute("mfu.sample.count", "int", "{sample}", "samples, a rank's share", "step", "window")
REQUEST_COUNT: Final = _attribute(
    "mfu.request.count", "int", "{request}", "inference requests that ended", "step", "window"
)
REQUEST_FAILED: Final = _attribute(
    "mfu.request.failed", "int", "{request}", "those of them that failed", "step", "window"
)
REQUEST_TIME: Final = _attribute(
    "mfu.request.time", "double", "s", "Σ duration of the requests that ended; they may overlap", "step", "window"
)
SAMPLE_REASON: Final = _attribute(
    "mfu.sample.reason",
    "string",
    "",
    "why this span was kept: all, periodic, first, last, error or recorder (a killed process's last steps)",
    "step",
    "inference",
)
SAMPLE_RATIO: Final = _attribute(
    "mfu.sample.ratio",
    "double",
    "1",
    "probability with which this span was kept: it weighs 1/ratio; one kept besides the sample has none, weighs 0",
    "step",
    "inference",
)
BATCH_RUNNING: Final = _attribute(
    "mfu.batch.running",
    "double",
    "{sample}",
    "mean leading dimension of the model's calls",
    "step",
    "window",
    "inference",
)
ARITHMETIC_INTENSITY: Final = _attribute(
    "mfu.arithmetic_intensity", "double", "{flop}/By", "hardware FLOPs per byte moved", "step", "window"
)
BATCH_FEASIBLE: Final = _attribute(
    "mfu.batch.feasible",
    "double",
    "{sample}",
    "sequences that would fit into one call, as the server tells it (load=)",
    "step",
    "window",
)
QUEUE_WAITING: Final = _attribute(
    "mfu.queue.waiting", "double", "{request}", "requests that wait to be begun (load=)", "step", "window"
)
KV_CACHE_FREE_RATIO: Final = _attribute(
    "mfu.kv_cache.free_ratio", "double", "1", "the free share of the key-value cache (load=)", "step", "window"
)
LATENCY_TARGET: Final = _attribute(
    "mfu.latency.target", "double", "s", "time per output token that the service promises (load=)", "step", "window"
)
COMM_BYTES: Final = _attribute(
    "mfu.comm.bytes", "double", "By", "what collectives moved, by the bus convention of nccl-tests", "window"
)
COMM_BUS_RATE: Final = _attribute(
    "mfu.comm.bus_rate", "double", "By/s", "the rate at which they moved it, while they were timed", "window"
)
COMM_BUS_RATE_PEAK: Final = _attribute(
    "mfu.comm.bus_rate.peak", "double", "By/s", "the measured rate of these links at this message size", "window"
)
COMM_IDEAL_RATIO: Final = _attribute(
    "mfu.comm.ideal_ratio", "double", "1", "communication / computation on ideal links, by roofline", "window"
)
CLOCK_RATIO: Final = _attribute(
    "mfu.clock.ratio", "double", "1", "the SM clock / the clock of the peak, the mean over the window", "window"
)
THROTTLE_REASONS: Final = _attribute(
    "mfu.throttle.reasons",
    "string[]",
    "",
    "why the driver held the clock back, in words for NVML's bits: software power cap, power brake, hardware slowdown, "
    "software thermal slowdown, hardware thermal slowdown and the like; empty where nothing did",
    "window",
)
WITNESS_UTILIZATION: Final = _attribute(
    "mfu.witness.utilization",
    "double",
    "1",
    "tensor pipes busy × clock ratio, counted by the device itself (NVML GPM, since Hopper)",
    "window",
)
EXPECTED_FEASIBLE: Final = _attribute(
    "mfu.expected.feasible", "double", "1", "the expected MFU at the batch that would fit (inference)", "step", "window"
)
REQUEST_RUNNING: Final = _attribute(
    "mfu.request.running",
    "double",
    "{request}",
    "requests under way at once, the mean over the busy period",
    "step",
    "window",
)
REQUEST_OUTCOME: Final = _attribute(
    "mfu.request.outcome",
    "string",
    "",
    "finished, cancelled (its caller left) or failed (with error.type)",
    "inference",
)
TOKEN_INPUT: Final = _attribute("mfu.token.input", "int", "{token}", "tokens of the request's prompt", "inference")
TOKEN_OUTPUT: Final = _attribute("mfu.token.output", "int", "{token}", "tokens of its answer", "inference")
TIME_TO_FIRST_TOKEN: Final = _attribute(
    "mfu.inference.time_to_first_token",
    "double",
    "s",
    "to the first chunk with a token, or to the end of the model's last call of the prompt",
    "inference",
)
TIME_PER_OUTPUT_TOKEN: Final = _attribute(
    "mfu.inference.time_per_output_token",
    "double",
    "s",
    "the mean over the tokens after the first, less the time that a stream's consumer took",
    "inference",
)
CHUNKS: Final = _attribute("mfu.inference.chunks", "int", "{chunk}", "what a generator yielded", "inference")
MODEL_CALLS: Final = _attribute(
    "mfu.inference.model_calls",
    "int",
    "{call}",
    "calls of the model in a request, or in one phase of it",
    "inference",
    "prefill",
    "decode",
)
ERROR_TYPE: Final = _attribute(
    "error.type",
    "string",
    "",
    "class of the user's exception that ended it; SIGTERM for a run that the signal ended",
    "step",
    "run",
    "inference",
    "metric",
)
# OpenTelemetry's own names, in development; sent where MFU_GEN_AI says so. Source of names and bucket bounds:
# open-telemetry/semantic-conventions, docs/gen-ai/gen-ai-metrics.md at 01d94504, and its Python package 0.66b2.
GEN_AI_OPERATION_NAME: Final = _attribute(
    "gen_ai.operation.name", "string", "", "what MFU_GEN_AI says", "inference", "metric"
)
GEN_AI_PROVIDER_NAME: Final = _attribute(
    "gen_ai.provider.name", "string", "", "whose flavour of these names it is: mfu_sdk", "inference", "metric"
)
GEN_AI_REQUEST_MODEL: Final = _attribute(
    "gen_ai.request.model",
    "string",
    "",
    "the model's name, where its configuration has one (name_or_path)",
    "inference",
    "metric",
)
GEN_AI_INPUT_TOKENS: Final = _attribute(
    "gen_ai.usage.input_tokens", "int", "{token}", "the same as mfu.token.input", "inference"
)
GEN_AI_OUTPUT_TOKENS: Final = _attribute(
    "gen_ai.usage.output_tokens", "int", "{token}", "the same as mfu.token.output", "inference"
)
WINDOW_STEP_FIRST: Final = _attribute(
    "mfu.window.step.first", "int", "{step}", "index of the first step in the window", "window"
)
WINDOW_STEP_COUNT: Final = _attribute(
    "mfu.window.step.count", "int", "{step}", "steps in the window, untimed ones too", "window"
)
WINDOW_STEP_TIMED: Final = _attribute(
    "mfu.window.step.timed", "int", "{step}", "steps in the window's sums of time and FLOPs", "window"
)
WINDOW_STEP_UNKNOWN: Final = _attribute(
    "mfu.window.step.unknown",
    "int",
    "{step}",
    "timed steps without model FLOPs or peak, left out of the sums",
    "window",
)
WINDOW_STEP_DURATIONS: Final = _attribute(
    "mfu.window.step.durations", "int[]", "us", "each step's duration; negative for an untimed step", "window"
)
WINDOW_STEP_UTILIZATIONS: Final = _attribute(
    "mfu.window.step.utilizations", "int[]", "1e-4", "each step's MFU in basis points; -1 where unknown", "window"
)
RUN_STEP_COUNT: Final = _attribute("mfu.run.step.count", "int", "{step}", "steps in the run", "run")
RUN_OVERHEAD: Final = _attribute("mfu.run.overhead", "double", "s", "time that the SDK took on the step path", "run")

# --- drift ---------------------------------------------------------------------------------------------------------

DRIFT_KIND: Final = _attribute("mfu.drift.kind", "string", "", "drop or rise", "drift")
DRIFT_MEASURE: Final = _attribute(
    "mfu.drift.measure",
    "string",
    "",
    "what was judged: flop_rate (model FLOPs a second), token_rate, or efficiency (MFU over expected MFU)",
    "drift",
)
DRIFT_CHANGE: Final = _attribute(
    "mfu.drift.change", "double", "1", "relative change of that: -0.1 is a tenth less", "drift"
)
DRIFT_SCORE: Final = _attribute(
    "mfu.drift.score", "double", "1", "evidence when it was found, over what an alarm needs", "drift"
)
DRIFT_THRESHOLD: Final = _attribute(
    "mfu.drift.threshold",
    "double",
    "1",
    "the evidence that an alarm needs: blocks of steps a false one takes at least, on average",
    "drift",
)
DRIFT_BASELINE: Final = _attribute(
    "mfu.drift.baseline", "double", "1", "MFU over the dense bf16 reference before the onset", "drift"
)
DRIFT_CURRENT: Final = _attribute(
    "mfu.drift.current", "double", "1", "MFU over the dense bf16 reference since the onset", "drift"
)
DRIFT_ONSET_STEP: Final = _attribute("mfu.drift.onset_step", "int", "{step}", "where it began", "drift")
DRIFT_FOUND_STEP: Final = _attribute("mfu.drift.found_step", "int", "{step}", "where it was found", "drift")
DRIFT_RECOVERED_STEP: Final = _attribute(
    "mfu.drift.recovered_step", "int", "{step}", "where it recovered; absent where it did not", "drift"
)
DRIFT_DETECTOR: Final = _attribute("mfu.drift.detector", "string", "", "what found it, and its version", "drift")
DRIFT_CAUSE: Final = _attribute(
    "mfu.drift.cause",
    "string",
    "",
    "configuration_drift, thermal_or_power, straggler, input_bound, load, accounting or unknown",
    "drift",
)
DRIFT_EVIDENCE: Final = _attribute("mfu.drift.evidence", "string[]", "", "why it is that cause, in words", "drift")
DRIFT_DIFF: Final = _attribute(
    "mfu.drift.fingerprint.diff", "string[]", "", "what of the configuration changed: name: before → after", "drift"
)

# --- metrics: doubles, cumulative; attributes only hw.id, mfu.phase, mfu.peak.dtype -------------------------------

STEP_COMPONENT: Final = _attribute(
    "mfu.step.component", "string", "", "which part of the step: total, data or device", "metric"
)
SDK_THREAD: Final = _attribute(
    "mfu.sdk.thread",
    "string",
    "",
    "whose time it is: step, of the threads that make steps; export, of the threads that send",
    "metric",
)
DROP_REASON: Final = _attribute(
    "mfu.drop.reason",
    "string",
    "",
    "why an item was dropped: queue_full, rejected, budget (of overhead) or exit",
    "metric",
)

METRIC_MODEL_FLOP: Final = _metric("mfu.model.flop", "counter", "{flop}", "FLOPs that the models needed")
METRIC_HARDWARE_FLOP: Final = _metric("mfu.hardware.flop", "counter", "{flop}", "FLOPs that ran")
METRIC_AVAILABLE_FLOP: Final = _metric("mfu.available.flop", "counter", "{flop}", "peak × time of the timed steps")
METRIC_STEP_COUNT: Final = _metric("mfu.step.count", "counter", "{step}", "steps")
METRIC_TOKEN_COUNT: Final = _metric("mfu.token.count", "counter", "{token}", "tokens")
METRIC_STEP_TIME: Final = _metric("mfu.step.time", "counter", "s", "time in timed steps, by component")
METRIC_UTILIZATION: Final = _metric("mfu.utilization", "gauge", "1", "MFU of the latest timed step")
METRIC_EXPECTED: Final = _metric("mfu.expected", "gauge", "1", "expected MFU of the latest timed step")
METRIC_PEAK_FLOP_RATE: Final = _metric("mfu.peak.flop_rate", "gauge", "{flop}/s", "the denominator's rate")
METRIC_PEAK_RATIO: Final = _metric(
    "mfu.peak.ratio",
    "gauge",
    "1",
    "rate that `run.calibrate()` measured between two steps / the measured rate that the run began with",
)
METRIC_RUN_INFO: Final = _metric("mfu.run.info", "gauge", "{run}", "1 while the run lives")
METRIC_STEP_DURATION: Final = _metric(
    "mfu.step.duration",
    "histogram",
    "s",
    "duration of timed steps",
    (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300),
)
METRIC_STEP_UTILIZATION: Final = _metric(
    "mfu.step.utilization",
    "histogram",
    "1",
    "MFU of timed steps",
    (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1),
)
METRIC_INFERENCE_DURATION: Final = _metric(
    "mfu.inference.duration",
    "histogram",
    "s",
    "duration of requests",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60),
)
METRIC_TIME_TO_FIRST_TOKEN: Final = _metric(
    "mfu.inference.time_to_first_token",
    "histogram",
    "s",
    "time to the first token of requests that finished",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
METRIC_TIME_PER_OUTPUT_TOKEN: Final = _metric(
    "mfu.inference.time_per_output_token",
    "histogram",
    "s",
    "time per output token after the first of requests that finished",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
METRIC_BATCH_FILL_RATIO: Final = _metric(
    "mfu.batch.fill_ratio", "gauge", "1", "mfu.batch.running / mfu.batch.feasible of the latest step that knows both"
)
METRIC_DRIFT_SCORE: Final = _metric(
    "mfu.drift.score", "gauge", "1", "the most evidence for a drift, or for its recovery, over what an alarm needs"
)
METRIC_DRIFT_ACTIVE: Final = _metric("mfu.drift.active", "gauge", "{excursion}", "excursions that have not recovered")
METRIC_DRIFT_COUNT: Final = _metric("mfu.drift.count", "counter", "{excursion}", "excursions that were found")
METRIC_GEN_AI_DURATION: Final = _metric(
    "gen_ai.server.request.duration",
    "histogram",
    "s",
    "duration of requests, where MFU_GEN_AI says so",
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
METRIC_GEN_AI_FIRST_TOKEN: Final = _metric(
    "gen_ai.server.time_to_first_token",
    "histogram",
    "s",
    "the same as mfu.inference.time_to_first_token, where MFU_GEN_AI says so",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
METRIC_GEN_AI_OUTPUT_TOKEN: Final = _metric(
    "gen_ai.server.time_per_output_token",
    "histogram",
    "s",
    "the same as mfu.inference.time_per_output_token, where MFU_GEN_AI says so",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
METRIC_SDK_OVERHEAD: Final = _metric(
    "mfu.sdk.overhead",
    "counter",
    "s",
    "time that the SDK took: elapsed on the step path, and the processor's of all export threads",
)
METRIC_SDK_DROPPED: Final = _metric("mfu.sdk.dropped", "counter", "{item}", "items never delivered, by reason")

ALWAYS_ON_METRICS: Final = frozenset({PHASE, STEP_COMPONENT, SDK_THREAD, DROP_REASON})
"""Attributes that every point has whose metric has them at all; the others are there where they are known."""

_labelled((HW_ID,), METRIC_RUN_INFO)
_labelled((HW_ID, SDK_THREAD), METRIC_SDK_OVERHEAD)
_labelled((HW_ID, DROP_REASON), METRIC_SDK_DROPPED)
_labelled((HW_ID, PHASE, STEP_COMPONENT), METRIC_STEP_TIME)
_labelled(
    (HW_ID, PHASE),
    METRIC_STEP_COUNT,
    METRIC_TOKEN_COUNT,
    METRIC_STEP_DURATION,
    METRIC_BATCH_FILL_RATIO,
    METRIC_DRIFT_SCORE,
    METRIC_DRIFT_ACTIVE,
    METRIC_DRIFT_COUNT,
    METRIC_INFERENCE_DURATION,
    METRIC_TIME_TO_FIRST_TOKEN,
    METRIC_TIME_PER_OUTPUT_TOKEN,
)
_labelled(
    (HW_ID, PHASE, PEAK_DTYPE),
    METRIC_MODEL_FLOP,
    METRIC_HARDWARE_FLOP,
    METRIC_AVAILABLE_FLOP,
    METRIC_PEAK_FLOP_RATE,
    METRIC_UTILIZATION,
    METRIC_EXPECTED,
    METRIC_STEP_UTILIZATION,
)
_labelled((HW_ID, PEAK_DTYPE), METRIC_PEAK_RATIO)
_labelled(
    (HW_ID, GEN_AI_OPERATION_NAME, GEN_AI_PROVIDER_NAME, GEN_AI_REQUEST_MODEL, ERROR_TYPE), METRIC_GEN_AI_DURATION
)
_labelled(
    (HW_ID, GEN_AI_OPERATION_NAME, GEN_AI_PROVIDER_NAME, GEN_AI_REQUEST_MODEL),
    METRIC_GEN_AI_FIRST_TOKEN,
    METRIC_GEN_AI_OUTPUT_TOKEN,
)
