"""What is known of one workload over a day or a range: every signal on its own, None where nobody told it.

A workload here is one tenant's work of one structure on one GPU type at one world size, in one configuration and one
phase. Shares are of the step time of its devices. What other machines and earlier runs show is beside it (`cohort`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Phase = Literal["train", "eval", "prefill", "decode", "inference", "checkpoint"]
LINKS: Final = ("none", "network", "system", "pcie", "nvlink")
"""Paths between two devices (`mfu.topology.link`), the slowest first."""


@dataclass(frozen=True, slots=True)
class Drift:
    """An excursion downwards, as the tenant's process or the provider found it.

    `change` is relative, −0.1 for a tenth less; `time_share` the share of the step time that lay in it.
    """

    cause: str
    change: float
    onset_step: int
    time_share: float
    diff: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier run of the same tenant, workload, structure, GPU type, world size and phase.

    Rates are a device's: model FLOPs and tokens over seconds of steps; the peak is the denominator that it told.
    """

    run_id: str
    fingerprint: str
    flops_per_s: float
    tokens_per_s: float | None = None
    batch: float | None = None
    peak_flops_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Smaller:
    """The same structure on the same GPU type at fewer ranks; tokens of a rank in a step, and in a second of steps.

    Of this workload, or of another one whose ranks have no more to do in a step.
    """

    world_size: int
    rank_tokens: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Rest:
    """What a stretch of hours is held against: the same configuration's other hours, as far as they are comparable.

    `clock` is what the slowest device would have had: its clock there, lowered by what clocks of its GPU type did.
    `mfu` is theirs, whatever held it.
    """

    data: float | None = None
    comm: float | None = None
    bus_bytes_per_s: float | None = None
    clock: float | None = None
    skew: float | None = None
    mfu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one workload. `day` is the first day in UTC, ISO 8601.

    `untold` names signals that nothing comparable here ever tells: no device of this GPU type its clock, no run of
    this workload its waits for data, its queue, the rate of its links or ("own comm") its communication. A rival cause
    that would show in one of them cannot be ruled out, and costs confidence; a signal that is told elsewhere and
    missing here is one that was lost, and no cause is built on that.
    """

    tenant: str
    workload: str | None
    day: str
    phase: str | None = None
    family: str | None = None
    gpu_type: str | None = None
    world_size: int | None = None
    intent: str | None = None
    fingerprint: str | None = None
    run_ids: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What it shares with others, by kind: driver, image, node, pool, switch (`systemic`)."""
    untold: frozenset[str] = frozenset()

    time_s: float | None = None
    """Σ step time over its devices."""
    mfu: float | None = None
    expected_mfu: float | None = None
    """By roofline over the operators that ran, at the load that there was."""
    flops_per_s: float | None = None
    """Model FLOPs of a device in a second of steps."""
    tokens_per_s: float | None = None
    reference_flops_per_s: float | None = None
    """The dense bf16 peak of its GPU type on paper."""
    peak_flops_per_s: float | None = None
    """The denominator that it tells."""
    peak_dtype: str | None = None
    """The dtype of that."""
    peak_source: str | None = None
    """Where it comes from (`mfu.peak.source`)."""
    rank_tokens: float | None = None
    """Tokens of one rank in one step."""

    data: float | None = None
    """Share of the time that waited for data; likewise below."""
    comm: float | None = None
    """Exposed communication without skew."""
    skew: float | None = None
    """Waiting for ranks that came late."""
    late_rank: int | None = None
    late_host: str | None = None

    link: str | None = None
    link_best: str | None = None
    """The best path between two devices of its own machine."""
    type_link: str | None = None
    """The best path that machines of this GPU type have, by inventory and by what others tell."""
    one_machine: bool | None = None
    """Whether its ranks would fit on one machine of this GPU type."""
    bus_bytes_per_s: float | None = None
    """The median over windows of the rate of collectives: a passing congestion does not move it."""
    best_bus_bytes_per_s: float | None = None
    """What the best fabric for this GPU type reaches at this message size."""
    ideal_ratio: float | None = None
    """Communication over computation on ideal links."""
    least_comm: float | None = None
    """The share of the step time that its gradients alone would take on the best links for as many ranks."""
    step_s: float | None = None
    """The mean time of a step."""
    gradient_bytes_per_step: float | None = None
    """What a rank's gradients move in a step at least, by the bus convention; None where ranks are not replicated."""
    weight_bytes: float | None = None
    """A rank's weights in 16 bits, as far as they follow from what was counted."""
    crossing_bytes_per_s: float | None = None
    """What the best links of its GPU type reach with as many bytes a step as cross its PCIe bus each way."""
    kin_mfu: float | None = None
    """The MFU that two other workloads of its structure reached on its GPU type, waits for data left out."""
    smaller: Smaller | None = None

    prefill: float | None = None
    """The share of its workload's step time that prompts take."""
    batch: float | None = None
    feasible: float | None = None
    """The batch that would fit (`mfu.batch.feasible`)."""
    feasible_mfu: float | None = None
    """The expected MFU at that batch."""
    kv_free: float | None = None
    queue: float | None = None
    intensity: float | None = None
    """FLOP/byte that ran."""
    ridge: float | None = None
    """FLOP/byte from which on memory does not bind: the peak over the memory's rate."""
    answer_s: float | None = None
    """Seconds per output token; in phase `inference` seconds per request."""
    latency_target_s: float | None = None
    """What the service promises of that. Nobody's measurement: where it is None nothing is promised."""

    clock: float | None = None
    """SM clock over the peak's, the mean over devices."""
    slowest_clock: float | None = None
    """The same of the device with the lowest, where ranks go at the pace of the last one."""
    cohort_clock: float | None = None
    """The median over whole devices of this GPU type in this phase that are held, or are not, as these are."""
    heat: float | None = None
    """Share of the time in windows in which the driver named heat or the power brake, on the hottest device."""
    cap: float | None = None
    """The same for the software power cap."""

    witness: float | None = None
    """Tensor pipes busy × clock, as the device counted."""
    witnessed_mfu: float | None = None
    """Hardware FLOPs over available ones in the windows that have a witness; over wall time where it is `watched`."""
    watched_gpu_hours: float | None = None
    """Whole hours in which the provider's own exporter was the witness; None where it is the tenant's word."""
    watched_devices: Mapping[str, float] = field(default_factory=dict)
    """The same by device."""
    pcie_tx_bytes_per_s: float | None = None
    """What a device of these sends over its PCIe bus, with headers: the mean in whole hours that it had to itself."""
    pcie_rx_bytes_per_s: float | None = None
    """What it receives."""
    dtype_mix: float | None = None
    """MFU with each dtype's FLOPs over its own peak, over the plain one: 1 where all are of the peak's dtype."""
    claimed_peak: float | None = None
    """The denominator's rate over theory's for its GPU type and dtype."""
    wall: float | None = None
    """Σ step time over the wall-clock time that it lay in, on the device with the most."""
    rank_spread: float | None = None
    """Most over least FLOPs per token among data-parallel ranks."""

    mig_profile: str | None = None
    stranded: float | None = None
    """The share of its GPU that no slice covers, or that a free slice of the wrong size holds."""
    unplaceable: float | None = None
    """The probability that a queued profile cannot be placed on it."""
    wanted: str | None = None
    """The queued profile that most wait for."""

    idle: float | None = None
    """The share of its allocated device hours without steps, while its SDK was heard."""
    replicas: int | None = None
    """The devices that are allocated to it."""
    working: int | None = None
    """Those of them that had steps for more than half of their hours."""

    drifts: tuple[Drift, ...] = ()
    earlier: tuple[Earlier, ...] = ()

    parts: tuple["Evidence", ...] = ()
    """The same over hours that stand out from its others (`hours`), one for each signal that is worse there."""
    worse: str | None = None
    """Which signal that is, of a part; None of a whole."""
    since_unix_s: int | None = None
    until_unix_s: int | None = None
    rest: Rest | None = None
