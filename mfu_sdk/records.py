"""The frozen dataclasses that flow between packages; every field names its unit.

FLOP counts are exact Python ints in the process and become doubles on the wire. One fused multiply-add is two FLOPs.
None always means "not known": never zero, never a guess.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Literal, ParamSpec, TypeVar, cast

from mfu_sdk.bars import Bar, drawn, percent
from mfu_sdk.ranks import AllRanks, Axis

_P = ParamSpec("_P")
_R = TypeVar("_R")

Convention = Literal["exact", "full"]
"""`exact` prices the attention score pairs that the mask lets through, `full` prices all of them."""

Phase = Literal["train", "eval", "prefill", "decode", "inference", "checkpoint"]
PHASES: tuple[Phase, ...] = ("train", "eval", "prefill", "decode", "inference", "checkpoint")
"""In an order that lasts: a flight recorder writes a phase as its number."""

CountSource = Literal["measured", "cached", "predicted", "sampled"]
"""How a step got its FLOPs: counted while it ran (so its time is not representative), looked up by its signature,
predicted from a checked closed form, or the mean of a sample that the signature does not determine."""


# --- what the step asked for ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Uncounted:
    """An operator that touches floating-point data and has neither a formula nor a declared cost of zero."""

    op: str
    calls: int
    module: str


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one kind of executed operator cost: `calls` times the same `flops` and `bytes_moved`.

    `flops` are hardware FLOPs of one call, in `dtype`; `bytes_moved` are the bytes of one call's tensor inputs and
    outputs, zero for views. A roofline needs no more than this (`counting.expect`). `weight_bytes` of them are read
    whatever the batch is: the right-hand side of a product, a convolution's kernel, and what is added to each row.
    """

    op: str
    dtype: str
    flops: int
    bytes_moved: int
    calls: int
    weight_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """FLOPs, bytes and coverage of one piece of executed work.

    `model_flops` = `forward_flops` + `backward_flops`: what the model needs, under `convention`. `hardware_flops`:
    what ran, so recomputation, the optimizer's own products and masked pairs that the kernel computed are in it.
    `by_dtype`, `by_module` and `by_op` each split `model_flops`. `coverage` is the share of operator bytes that had
    a formula or a declared cost of zero (1.0: everything). `comm_bytes` maps a collective to the bytes that this
    rank handed to it.
    """

    model_flops: int
    hardware_flops: int
    forward_flops: int
    backward_flops: int
    recompute_flops: int
    optimizer_flops: int
    attention_flops_exact: int
    attention_flops_full: int
    by_dtype: Mapping[str, int]
    by_module: Mapping[str, int]
    by_op: Mapping[str, int]
    uncounted: tuple[Uncounted, ...]
    coverage: float
    bytes_moved: int
    comm_bytes: Mapping[str, int]
    convention: Convention
    ops: tuple[OpCost, ...] = ()
    formula_version: str = ""


# --- what the device can do ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate with its interval, where it came from, and how old it is.

    `flops_per_s` in FLOP/s; for `Peaks.memory` and `CollectiveRate.bus` the same field holds bytes/s, which
    `bytes_per_s` reads by its name.
    """

    flops_per_s: float
    low: float
    high: float
    source: str
    age_s: float

    @property
    def bytes_per_s(self) -> float:
        """The rate of a `Rate` that is one of memory or of a bus, in bytes/s."""
        return self.flops_per_s


Over = Literal["host", "network", "all"]
"""Between which ranks a collective was measured: those of each host, one of each host, or all of several hosts."""


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """The time of one call with a message of `size_bytes`: the median over `batches`, with its interval, in seconds.

    The slowest rank's time counts. The size is S of `counting.collective_time`: the whole message, not a rank's part.
    """

    size_bytes: int
    seconds: float
    low_s: float
    high_s: float
    batches: int


@dataclass(frozen=True, slots=True)
class CollectiveRate:
    """What one collective does over one kind of link.

    `collective` is "all_reduce", "all_gather", "reduce_scatter" or "all_to_all". `groups` groups of `ranks` ranks ran
    it at the same time, between the ranks that `over` tells. `link` is the weakest edge of these groups: "nvlink",
    "pcie-switch", "host-bridge" and the like where it is known, else "host", or "network" between hosts. `bus`, in
    bytes/s (`Rate.bytes_per_s`), is the bus rate of the largest message: S/t times 2(n−1)/n for an all-reduce of n
    ranks, times (n−1)/n for the others. `times` are those of all messages, in rising size.
    """

    collective: str
    over: Over
    link: str
    ranks: int
    groups: int
    backend: str
    bus: Rate
    times: tuple[CollectiveTime, ...]

    @property
    def latency(self) -> CollectiveTime:
        """The time of the smallest message, of which all but the latency is negligible.

        It was measured by itself, with an interval of its own. The α of a straight line through all sizes was not: it
        is what is left over between protocols that change with the size, and may come out below zero.
        """
        return self.times[0]

    @property
    def latency_bound(self) -> bool:
        """Whether the largest message takes less than twice the smallest one's time: `bus` then says little of a link.

        The budget, or the slowest rank, ended the ladder of sizes early.
        """
        return self.times[-1].seconds < 2 * self.times[0].seconds


@dataclass(frozen=True, slots=True)
class Collectives:
    """The collectives of a process group, the same on all of its ranks.

    `rates` is keyed by collective and `over`: "all_reduce/host". `missing` says what is not in it and why, None where
    nothing is missing. `state` holds the backend, the kind of device, and the number of ranks and hosts.
    """

    rates: Mapping[str, CollectiveRate]
    missing: str | None
    state: Mapping[str, str | float | bool]


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do: per dtype by theory, per dtype as measured, its memory's rate, and its collectives.

    `theoretical` and `achievable` map a dtype's name ("float32", "bfloat16") to a `Rate`. `memory` is in bytes/s,
    bytes read plus bytes written, for buffers far larger than any cache; `memory_by_size` gives (working set in
    bytes, bytes/s) pairs in rising size, because a processor's caches are faster than its memory. `state` holds what
    moved the number: threads, load, `contended`, driver, clocks. `collectives`, keyed as in `Collectives.rates`, is
    empty unless they were asked for; each says between how many ranks it was measured.
    """

    device: str
    theoretical: Mapping[str, Rate]
    achievable: Mapping[str, Rate]
    memory: Rate | None
    clock_mhz: float | None
    state: Mapping[str, str | float | bool]
    memory_by_size: tuple[tuple[int, float], ...] = ()
    calibration_id: str | None = None
    collectives: Mapping[str, CollectiveRate] = field(default_factory=dict)

    def headline(self, dtype: str) -> tuple[str, Rate] | None:
        """The denominator for work whose matmuls are mostly in `dtype`: (its dtype, its rate), or None.

        Published MFU divides by the dense bf16 peak whatever the low-precision format; runs in fp32 or TF32 are
        divided by that dtype's own peak. Theory is preferred where there is a datasheet; a processor has none, so
        its measured fp32 rate stands in and `Rate.source` says so.
        """
        # Volta and Turing have no bf16: what they run of it is emulated, and fp16 is their reference.
        wanted = (dtype,) if dtype in ("float32", "tf32", "float64") else ("bfloat16", "float16")
        for table in (self.theoretical, self.achievable):
            for name in wanted:
                if name in table:
                    return name, table[name]
        # A processor's peak is known for fp32 only; bf16 work on it is held against that, and peak_dtype says so.
        if "float32" in self.achievable and self.device == "cpu":
            return "float32", self.achievable["float32"]
        return None


Bound = Literal["compute", "memory", "communication"]


@dataclass(frozen=True, slots=True)
class OpTime:
    """What `calls` calls of one kind of operator take on a roofline: `seconds` in all, and what binds them."""

    op: str
    dtype: str
    calls: int
    seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Expectation:
    """The least time that work can take on given peaks, with its interval, and what binds it.

    `time_s` = `compute_s` + `memory_s` + `communication_s` + `bubble_s`: Σ over operators of max(FLOPs / achievable
    rate, bytes / memory rate), in the part that either binds; collectives as far as computing does not hide them
    (`hidden_s` is what it hides); and what a pipeline stands idle. `mfu` is model FLOPs over the headline peak times
    `time_s`. `low_s` and `high_s` follow from the peaks' intervals and from all or nothing of the communication being
    hidden, `low_mfu` and `high_mfu` from these two. `high_s` and `low_mfu` are None where something in `missing` has
    no known rate: its time is then in none of the figures.

    `mbu` is memory bandwidth utilization, (`bytes_moved` / time) / memory rate, with the rate of `Peaks.memory`; None
    where that is not known, and above 1 where caches serve more than memory could. `ops` has each kind of operator,
    the longest first. `assumptions` say what was taken for granted. `tokens_per_s` and `devices` are those of all
    devices; an expectation of a counted step alone has no tokens.
    """

    time_s: float
    mfu: float
    compute_s: float
    memory_s: float
    communication_s: float = 0.0
    hidden_s: float = 0.0
    bubble_s: float = 0.0
    low_s: float | None = None
    high_s: float | None = None
    low_mfu: float | None = None
    high_mfu: float | None = None
    mbu: float | None = None
    bytes_moved: int = 0
    ops: tuple[OpTime, ...] = ()
    missing: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    device: str = ""
    devices: int = 1
    peak_flops_per_s: float | None = None
    peak_dtype: str | None = None
    tokens_per_s: float | None = None

    @property
    def bound(self) -> Bound:
        """The resource that binds most of the time."""
        parts: dict[Bound, float] = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "communication": self.communication_s,
        }
        return max(parts, key=parts.__getitem__)


# --- is it what we expected ----------------------------------------------------------------------------------------

DriftCause = Literal[
    "configuration_drift", "thermal_or_power", "straggler", "input_bound", "load", "accounting", "unknown"
]


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """An excursion of a run from what its own baseline lets expect: from its onset to its recovery, if it has one.

    `kind` is "drop" or "rise"; `measure` is what was judged: "flop_rate" (model FLOPs a second), "token_rate" or
    "efficiency" (MFU over the MFU expected at the load). `change` is that measure's relative change, -0.1 for a tenth
    less. `baseline` and `current` are MFU over the dense bf16 reference peak before and since the onset; None where no
    peak is known. `score` is the evidence when it was found over `threshold`, which it had to reach
    (`mfu_sdk.drift.detector`, whose name and version `detector` is). Steps are indices, times Unix nanoseconds.

    `parts` split the change of log MFU: they sum to it. `evidence` says in words why it is `cause`, and
    `fingerprint_diff` what of the configuration changed, as "name: before → after". The provider's advice names these
    causes too.
    """

    kind: Literal["drop", "rise"]
    phase: str
    measure: str
    change: float
    baseline: float | None
    current: float | None
    onset_step: int
    onset_unix_ns: int
    found_step: int
    found_unix_ns: int
    score: float
    threshold: float
    detector: str
    cause: DriftCause
    evidence: tuple[str, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    fingerprint_diff: tuple[str, ...] = ()
    recovered_step: int | None = None
    recovered_unix_ns: int | None = None

    def __str__(self) -> str:
        until = "" if self.recovered_step is None else f" to {self.recovered_step:,}"
        why = f": {self.evidence[0]}" if self.evidence else ""
        return f"{self.phase} {self.change:+.1%} from step {self.onset_step:,}{until}, {self.cause}{why}"


# --- what happened -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: what it asked for, how long it took, and the ratio, with the denominator beside it.

    The step runs from the end of its predecessor to its own end, data wait included. `mfu` = `model_flops` /
    (`peak_flops_per_s` × `duration_s`); `hfu` the same with `hardware_flops`; `mfu_by_dtype` = Σ FLOPs_d / peak_d
    over `duration_s`; `achievable_mfu` divides by the measured peak; `expected_mfu` is what a roofline over the
    counted operators allows (`Expectation`), `expected_low_mfu` and `expected_high_mfu` are the ends of its interval.
    A busy period of inference is a step for each phase that the model's calls were in, and `duration_s` is that
    phase's own part of the device's time (`run.busy`). `requests` that ended in it took `requests_s` together, more
    than `duration_s` where they overlapped; `requests_running` were under way, the mean over the whole period.
    `batch_feasible`, `queue_waiting`, `kv_cache_free_ratio`, `latency_target_s`: the server's (`requests.Load`).
    `expected_feasible_mfu` is `expected_mfu` with as many sequences in each call as `batch_feasible` says.
    `comm_s` is how long the step stood waiting for what its collectives brought, late ranks included, where that very
    step was timed: on a processor each one of DistributedDataParallel, or of short ones as many as cost nothing
    (`run.ddp_times`), else those whose operators were (`run.op_times`). Of a step that failed no FLOPs are known.
    A step whose `count_source` is "measured" ran under the counting mode, and of a `profiled` one each operator was
    timed: their time is not representative, and no sum of times, utilizations or available FLOPs includes them
    (`timed`). Their tokens, samples and requests were work all the same: their sums include every step that did not
    fail.
    """

    index: int
    phase: Phase
    duration_s: float
    model_flops: int | None
    hardware_flops: int | None
    peak_flops_per_s: float | None
    peak_source: str | None
    mfu: float | None
    hfu: float | None
    mfu_by_dtype: float | None
    expected_mfu: float | None
    achievable_mfu: float | None
    count_source: CountSource | None
    coverage: float | None
    tokens: int | None
    data_wait_s: float | None
    comm_s: float | None
    device_s: float | None
    convention: Convention
    start_unix_ns: int = 0
    peak_dtype: str | None = None
    samples: int | None = None
    attention_flops_exact: int | None = None
    attention_flops_full: int | None = None
    batch_running: float | None = None
    arithmetic_intensity: float | None = None
    requests: int | None = None
    requests_failed: int | None = None
    requests_s: float | None = None
    error_type: str | None = None
    profiled: bool = False
    requests_running: float | None = None
    batch_feasible: float | None = None
    queue_waiting: float | None = None
    kv_cache_free_ratio: float | None = None
    latency_target_s: float | None = None
    expected_feasible_mfu: float | None = None
    expected_low_mfu: float | None = None
    expected_high_mfu: float | None = None

    @property
    def timed(self) -> bool:
        """Whether this step's time is representative: it was neither counted nor profiled, and did not fail."""
        return self.count_source != "measured" and not self.profiled and self.error_type is None

    @property
    def available_flops(self) -> float | None:
        """FLOPs that the device could have done in the step's time."""
        return None if self.peak_flops_per_s is None else self.peak_flops_per_s * self.duration_s

    @property
    def counts(self) -> bool:
        """Whether sums of FLOPs may include this step: timed, and both numerator and denominator known."""
        return self.timed and self.model_flops is not None and self.peak_flops_per_s is not None


def _thawed(frozen: Callable[_P, _R]) -> Callable[_P, _R]:
    """What makes instances of a frozen dataclass of slots, filled in while they are not frozen yet.

    Its own `__init__` sets each field through `object.__setattr__`, which for the 40 of a step takes 5 µs, ten times as
    long as assigning them. A class with the same slots is of the same layout, so an instance may change over.
    """
    assert isinstance(frozen, type)
    made = [(each.name, each.type, field(default=each.default)) for each in fields(frozen)]
    twin = make_dataclass(f"_{frozen.__name__}", made, slots=True, eq=False)

    def make(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        record = twin(*args, **kwargs)
        record.__class__ = frozen
        return cast("_R", record)

    return make


step_record = _thawed(StepRecord)
"""`StepRecord(...)`, for where one is made in every step."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who a run is, on every record it sends: the OpenTelemetry resource in our own words.

    `workload_family` is a hash of the model's structure. `device_id` is a GPU or MIG UUID, or None on a processor;
    `device_name` is what the driver calls the device. `axes` are those of `ranks.AXES` that are known: "dp", "tp", ….
    `allocation_id` is the scheduler's name for what the process was given, `node` the machine's where its host name is
    a container's. Of a MIG slice `mig_profile` is "1g.10gb" and `parent_id` the UUID of its GPU. `link` is the worst
    path from this rank's device to its peers' and `link_best` the best of its machine: "nvlink", "pcie", "system",
    "network" or "none". `model_class` is what kind of model it is ("llama"), `model_name` what its authors call it.
    """

    run_id: str
    attempt: int
    workload: str
    workload_family: str | None
    rank: int
    local_rank: int | None
    world_size: int
    device_name: str
    device_vendor: str | None
    device_id: str | None
    start_unix_ns: int
    axes: Mapping[str, Axis] = field(default_factory=dict)
    allocation_id: str | None = None
    node: str | None = None
    mig_profile: str | None = None
    parent_id: str | None = None
    link: str | None = None
    link_best: str | None = None
    model_class: str | None = None
    model_name: str | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run's totals: `mfu` is Σ model FLOPs / Σ (peak × time) over its timed steps, not a mean of ratios.

    `waterfall` splits the timed steps' available FLOPs into shares that sum to 1; it is empty when `mfu` is None, and
    a share that is not known (waiting for data, where the loop does not show it) is not in it but in `unexplained`.
    `bars` are the same shares with their seconds, how each is known, and what there is to say of it.
    `steps` counts every step, `timed_steps` those in the sums of time, `unknown_steps` the timed ones that are in no
    sum of FLOPs because their count or their peak is not known. `tokens` are those of all steps that did not fail,
    `tokens_per_s` those of timed steps over their time. `overhead_s` is the time spent in the SDK's own code on the
    step path, and what counting added to the steps that were counted. `mbu` is memory bandwidth utilization: what the
    operators read and wrote, over the memory's rate × time; above 1 caches had what they read. `drift` are the
    excursions from the run's own baseline, the last of them at most. `notes` say what a reader should know before
    believing the figures. All of these are this rank's; `ranks` has what is known of all of them, None where the
    process is on its own or the ranks share no store.
    """

    name: str
    steps: int
    timed_steps: int
    unknown_steps: int
    mfu: float | None
    hfu: float | None
    expected_mfu: float | None
    waterfall: Mapping[str, float]
    tokens: int | None
    tokens_per_s: float | None
    overhead_s: float
    uncounted: tuple[Uncounted, ...]
    coverage: float | None
    model_flops: int | None
    duration_s: float
    peak_flops_per_s: float | None
    peak_dtype: str | None
    peak_source: str | None
    device: str
    convention: Convention
    peak_memory_bytes_per_s: float | None = None
    calibration_id: str | None = None
    notes: tuple[str, ...] = field(default=())
    bars: tuple[Bar, ...] = ()
    ranks: AllRanks | None = None
    drift: tuple[DriftEvent, ...] = ()
    mbu: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.steps} steps ({self.timed_steps} timed) on {self.device}"]
        if self.mfu is None:
            lines.append("  MFU          unknown")
        else:
            peak = (self.peak_flops_per_s or 0.0) / 1e9
            lines.append(
                f"  MFU          {percent(self.mfu)} of {peak:,.0f} GFLOP/s {self.peak_dtype}"
                f" ({self.peak_source}, {self.convention} attention)"
            )
            if self.expected_mfu is not None:
                lines.append(f"  expected     {percent(self.expected_mfu)} by roofline over the counted operators")
            if self.hfu is not None:
                lines.append(f"  HFU          {percent(self.hfu)}")
            if self.mbu is not None and self.peak_memory_bytes_per_s is not None:
                rate = f"{self.peak_memory_bytes_per_s / 1e9:,.0f} GB/s"
                caches = ", caches helped" if self.mbu > 1 else ""
                lines.append(f"  MBU          {percent(self.mbu)} of {rate}, by what operators read and write{caches}")
            lines += ["  waterfall", *(f"    {line}" for line in drawn(self.bars, 76))]
        if self.tokens is not None:
            rate = "" if self.tokens_per_s is None else f", {self.tokens_per_s:,.0f} a second"
            lines.append(f"  tokens       {self.tokens:,}{rate}")
        if self.coverage is not None:
            missing = ", ".join(f"{entry.op} ×{entry.calls}" for entry in self.uncounted[:5]) or "nothing"
            lines.append(f"  not counted  {missing} (coverage {self.coverage:.1%})")
        lines += [f"  drift        {event}" for event in self.drift]
        lines.append(f"  overhead     {self.overhead_s:.3f} s")
        if self.ranks is not None:
            lines.append(f"  all ranks    {self.ranks}")
        lines += [f"  note         {note}" for note in (*self.notes, *(self.ranks.notes if self.ranks else ()))]
        return "\n".join(lines)
