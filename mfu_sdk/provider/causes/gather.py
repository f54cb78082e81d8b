"""From sums, signs and runs to what is known of each workload; pure, and where nothing is known it stays None.

What a workload shares with others (`context`) is found over all of them, whoever asks: a tenant sees its own findings,
and of others only the rate, clock or path that its kind of GPU reaches, and that others of its structure do better.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median
from typing import Final, NamedTuple

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak import catalogue
from mfu_sdk.peak.theory import theoretical
from mfu_sdk.provider.causes.evidence import LINKS, Drift, Earlier, Evidence
from mfu_sdk.provider.causes.hours import KNOWN_SHARE
from mfu_sdk.provider.fleet import Witness
from mfu_sdk.provider.rollup import Sums, Usage, ratio, total

GRADIENT_BYTES: Final = 2.0
"""Of one weight, in 16 bits."""
JUDGED: Final = frozenset({None, "train", "eval", "prefill", "decode", "inference"})


class Unit(NamedTuple):
    """One configuration of one workload in one phase: what evidence is gathered by."""

    tenant: str
    workload: str | None
    family: str | None
    gpu_type: str | None
    world_size: int | None
    intent: str | None
    fingerprint: str | None
    phase: str | None

    @property
    def kin(self) -> tuple[object, ...]:
        """What runs share that are held against one another."""
        return self.tenant, self.workload, self.family, self.gpu_type, self.world_size, self.phase


@dataclass(frozen=True, slots=True)
class Sign:
    """What the windows of one rank tell beside the sums (sql/read/signs.sql); seconds are those of steps."""

    rank: int | None
    host: str | None
    device: str
    time_s: float
    first_unix_ns: int
    last_unix_ns: int
    dp: int | None = None
    heat: float | None = None
    cap: float | None = None
    skew: float | None = None
    comm: float | None = None
    bus_bytes_per_s: float | None = None
    bus_peak_bytes_per_s: float | None = None
    comm_bytes_per_step: float | None = None
    witnessed_mfu: float | None = None
    dtype_mix: float | None = None
    flops_per_token: float | None = None
    attention: float | None = None
    """The share of its model FLOPs that attention is: scores and values, products without weights."""
    peak_dtype: str | None = None
    peak_source: str | None = None
    clock: float | None = None
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One earlier or present run, and when it began; tokens of a rank in a step where they are told."""

    start_unix_s: int
    told: Earlier
    rank_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """The evidence of one unit, and what others are told of it: its links' rate, its message size, its clocks."""

    unit: Unit
    evidence: Evidence
    clocks: tuple[float, ...] = ()
    bus_peak_bytes_per_s: float | None = None
    comm_bytes_per_step: float | None = None
    ranks_per_replica: float | None = None
    devices_by_host: Mapping[str, int] = field(default_factory=dict)
    gradient_bytes_per_step: float | None = None
    """What a rank's gradients are at least, by the bus convention."""
    step_s: float | None = None


def unit_of(usage: Usage) -> Unit:
    """Whose evidence a device's sums are part of."""
    return Unit(
        usage.tenant, usage.workload, usage.family, usage.gpu_type, usage.world_size, usage.intent, usage.fingerprint,
        usage.phase,
    )  # fmt: skip


def gather(
    day: str,
    usages: Iterable[Usage],
    signs: Mapping[Unit, Sequence[Sign]],
    drifts: Mapping[Unit, tuple[Drift, ...]],
    answers: Mapping[tuple[str, str | None], tuple[float | None, float | None]],
) -> list[Gathered]:
    """What each unit tells of itself. `answers` are seconds per token and per request by tenant and workload.

    A configuration with less than 5 % of its workload's time is none of its causes.
    """
    groups: dict[Unit, list[Usage]] = {}
    of_job: dict[object, float] = {}
    of_prompts: dict[object, float] = {}
    for usage in usages:
        if usage.phase in JUDGED and usage.sums.device_s:
            groups.setdefault(unit_of(usage), []).append(usage)
            of_job[usage.job] = of_job.get(usage.job, 0.0) + usage.sums.device_s
            if usage.phase == "prefill":
                of_prompts[usage.job] = of_prompts.get(usage.job, 0.0) + usage.sums.device_s
    found = []
    for unit, parts in groups.items():
        sums = total(part.sums for part in parts)
        if (sums.device_s or 0.0) < 0.05 * of_job[parts[0].job]:
            continue
        token_s, request_s = answers.get((unit.tenant, unit.workload), (None, None))
        answer_s = token_s if unit.phase == "decode" else request_s
        made = _one(day, unit, parts, sums, signs.get(unit, ()), drifts.get(unit, ()), answer_s)
        prefill = of_prompts.get(parts[0].job, 0.0) / of_job[parts[0].job]
        found.append(replace(made, evidence=replace(made.evidence, prefill=prefill)))
    return found


def witnessed(of: Gathered, by: Witness | None) -> Gathered:
    """The evidence with the provider's own witness in the place of what the tenant's process says of its device."""
    if by is None:
        return of
    evidence = replace(
        of.evidence,
        witness=by.utilization,
        witnessed_mfu=by.hardware_mfu,
        watched_gpu_hours=by.gpu_hours,
        watched_devices=by.device_hours,
        pcie_tx_bytes_per_s=by.pcie_tx_bytes_per_s,
        pcie_rx_bytes_per_s=by.pcie_rx_bytes_per_s,
    )
    return replace(of, evidence=evidence)


def _one(
    day: str,
    unit: Unit,
    parts: Sequence[Usage],
    sums: Sums,
    signs: Sequence[Sign],
    drifts: tuple[Drift, ...],
    answer_s: float | None,
) -> Gathered:
    comm, skew = _share(sums.comm_s, sums.comm_known_s, sums), _share(sums.skew_s, sums.skew_known_s, sums)
    waits = [(sign.skew, sign) for sign in signs if sign.skew is not None]
    if skew is None and (told := [(sign.comm, sign) for sign in signs if sign.comm is not None]) and len(told) > 1:
        # The rank that comes last waits least: what the others wait beyond that is for it.
        least = min(share for share, _ in told)
        mean = sum(share * sign.time_s for share, sign in told) / sum(sign.time_s for _, sign in told)
        comm, skew, waits = least, mean - least, told
    if unit.world_size == 1:
        comm, skew = comm or 0.0, 0.0
    # With two ranks or more, the one that never waits is the one that is waited for.
    late = min(waits, key=lambda each: each[0])[1] if len(waits) > 1 else None
    timed = sums.device_s or 0.0
    known_s = timed * (1 - (sums.unknown_steps or 0.0) / sums.timed_steps) if sums.timed_steps else timed
    peak = ratio(sums.available_flops, known_s)
    spec = _spec(unit.gpu_type)
    dtype = next((sign.peak_dtype for sign in sorted(signs, key=lambda s: -s.time_s) if sign.peak_dtype), None)
    mig_profile = _only(part.mig_profile for part in parts)
    memory = sums.memory_rate or (spec.memory_bytes_per_s if spec is not None and mig_profile is None else None)
    on_paper = None if spec is None or mig_profile is not None or dtype is None else spec.peaks.get(dtype)
    of_a_slice = None if mig_profile is not None or spec is None else spec.reference_flops_per_s
    hosts: dict[str, set[str]] = {}
    for part in parts:
        if part.host is not None:
            hosts.setdefault(part.host, set()).add(part.parent or part.device)
    places: dict[str, tuple[str, ...]] = {"node": tuple(sorted(hosts))} if hosts else {}
    for kind in ("driver", "image", "pool", "zone"):
        if values := sorted({value for sign in signs for value in sign.places.get(kind, ())}):
            places[kind] = tuple(values)
    dp = next((sign.dp for sign in signs if sign.dp), None)
    gradients = gradient_bytes(signs, unit.world_size) if unit.phase == "train" else None
    evidence = Evidence(
        tenant=unit.tenant,
        workload=unit.workload,
        day=day,
        phase=unit.phase,
        family=unit.family,
        gpu_type=unit.gpu_type,
        world_size=unit.world_size,
        intent=unit.intent,
        fingerprint=unit.fingerprint,
        run_ids=tuple(sorted({run_id for part in parts for run_id in part.run_ids})),
        hosts=tuple(sorted(hosts)),
        places=places,
        time_s=sums.device_s,
        mfu=sums.mfu,
        expected_mfu=sums.expected_mfu,
        flops_per_s=ratio(sums.model_flops, known_s),
        tokens_per_s=_token_rate(sums),
        reference_flops_per_s=of_a_slice,
        peak_flops_per_s=peak,
        peak_dtype=dtype,
        peak_source=next((sign.peak_source for sign in signs if sign.peak_source), None),
        rank_tokens=ratio(sums.tokens, sums.steps),
        data=_share(sums.data_s, sums.data_known_s, sums),
        comm=comm,
        skew=skew,
        late_rank=None if late is None else late.rank,
        late_host=None if late is None else late.host,
        link=next(iter(_links(part.link for part in parts)), None),
        link_best=next(reversed(_links(part.link_best for part in parts)), None),
        bus_bytes_per_s=_middle(sign.bus_bytes_per_s for sign in signs) or sums.bus_rate,
        ideal_ratio=sums.ideal_ratio,
        step_s=ratio(sums.device_s, sums.timed_steps),
        gradient_bytes_per_step=gradients,
        weight_bytes=None if gradients is None or dp is None else gradients * dp / (2 * (dp - 1)),
        batch=sums.batch_running,
        feasible=sums.batch_feasible,
        feasible_mfu=sums.feasible_mfu,
        kv_free=sums.kv_free,
        queue=sums.queue,
        intensity=sums.intensity,
        ridge=ratio(peak, memory),
        answer_s=answer_s,
        latency_target_s=sums.latency_target,
        clock=sums.clock,
        slowest_clock=_slowest(signs, unit.world_size),
        heat=max((sign.heat for sign in signs if sign.heat is not None), default=None),
        cap=_mean(signs, "cap"),
        witness=sums.witness,
        witnessed_mfu=_mean(signs, "witnessed_mfu"),
        dtype_mix=_mean(signs, "dtype_mix"),
        claimed_peak=ratio(peak, on_paper),
        wall=_wall(signs),
        rank_spread=_spread(signs, unit.world_size),
        mig_profile=mig_profile,
        drifts=drifts,
    )
    return Gathered(
        unit,
        evidence,
        tuple(part.sums.clock for part in parts if part.sums.clock is not None),
        _middle(sign.bus_peak_bytes_per_s for sign in signs) or sums.bus_peak,
        _middle(sign.comm_bytes_per_step for sign in signs),
        unit.world_size / dp if dp and unit.world_size else None,
        {host: len(devices) for host, devices in hosts.items()},
        gradients,
        evidence.step_s,
    )


def gradient_bytes(signs: Sequence[Sign], world_size: int | None) -> float | None:
    """The least that a rank's gradients move in a step, by the bus convention; None where ranks are not replicated.

    A product with weights takes 6 FLOPs a weight and token, forward and backward (arXiv 2001.08361, section 2.1), so
    that FLOPs a token without attention's tell the weights that take part, of experts the active ones. The least is an
    all-reduce of their gradients in 16 bits once a step: shards of weights are exchanged more often.
    """
    if world_size is None:
        return None
    known = [
        sign.flops_per_token * (1 - sign.attention) / 6
        for sign in signs
        if sign.flops_per_token is not None and sign.attention is not None and sign.dp is not None and sign.dp > 1
    ]
    dp = next((sign.dp for sign in signs if sign.dp is not None), None)
    if not known or dp is None or len(known) < len(signs):
        return None
    weights = median(known) * dp / world_size
    return 2 * (dp - 1) / dp * GRADIENT_BYTES * weights


def clock_of(gpu_type: str | None, mhz: float) -> float | None:
    """A clock in MHz over that of the GPU type's peak on paper."""
    spec = _spec(gpu_type)
    if spec is None or not (known := sorted(spec.flops_per_mhz.keys() & spec.peaks)):
        return None
    dtype = "bfloat16" if "bfloat16" in known else known[0]
    return mhz * spec.flops_per_mhz[dtype] / spec.peaks[dtype]


def _share(seconds: float | None, known_s: float | None, sums: Sums) -> float | None:
    if not known_s or not sums.device_s or known_s < KNOWN_SHARE * sums.device_s:
        return None
    return None if seconds is None else min(1.0, seconds / known_s)


def _token_rate(sums: Sums) -> float | None:
    """Tokens a second of timed steps; tokens are told of all steps, time of the timed ones."""
    if not sums.tokens or not sums.steps or not sums.timed_steps or not sums.device_s:
        return None
    return sums.tokens / sums.steps * sums.timed_steps / sums.device_s


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(signs: Sequence[Sign], name: str) -> float | None:
    """The mean over the ranks' time, of those that know it."""
    known = [(getattr(sign, name), sign.time_s) for sign in signs if getattr(sign, name) is not None and sign.time_s]
    return sum(value * time_s for value, time_s in known) / sum(time_s for _, time_s in known) if known else None


def _slowest(signs: Sequence[Sign], world_size: int | None) -> float | None:
    """The lowest mean clock of a device, where several work in step and all of them tell theirs."""
    clocks = [sign.clock for sign in signs if sign.clock is not None]
    return min(clocks) if world_size is not None and world_size > 1 and len(clocks) == len(signs) and clocks else None


def _links(links: Iterable[str | None]) -> list[str]:
    """The paths that are told, the slowest first."""
    return sorted((link for link in links if link in LINKS), key=LINKS.index)


def _only(values: Iterable[str | None]) -> str | None:
    known = {value for value in values if value is not None}
    return min(known) if len(known) == 1 else None


def _wall(signs: Sequence[Sign]) -> float | None:
    """Σ step time over the time from its first window to the end of its last, on the device with the most."""
    devices: dict[str, list[Sign]] = {}
    for sign in signs:
        devices.setdefault(sign.device, []).append(sign)
    found = [
        sum(sign.time_s for sign in of) / (until - since) * 1e9
        for of in devices.values()
        if (until := max(sign.last_unix_ns for sign in of)) > (since := min(sign.first_unix_ns for sign in of))
    ]
    return max(found, default=None)


def _spread(signs: Sequence[Sign], world_size: int | None) -> float | None:
    """Most over least FLOPs per token among ranks that all do the same: data-parallel ones, and no others."""
    if world_size is None or world_size < 2 or not all(sign.dp == world_size for sign in signs):
        return None
    known = [sign.flops_per_token for sign in signs if sign.flops_per_token]
    return max(known) / min(known) if len(known) > 1 else None


@dataclass(frozen=True, slots=True)
class Spec:
    """A GPU type on paper: peaks in FLOP/s by dtype at the highest clock, the bf16 reference, bytes/s of memory.

    `flops_per_mhz`: FLOP/s by dtype at a clock of one MHz.
    """

    peaks: Mapping[str, float]
    reference_flops_per_s: float | None
    memory_bytes_per_s: float
    flops_per_mhz: Mapping[str, float]


@lru_cache(maxsize=1024)
def _spec(gpu_type: str | None) -> Spec | None:
    """What the catalogue has of a GPU type by the driver's name; None for what is none of them."""
    if gpu_type is None or not re.search(r"[A-Za-z]\d", gpu_type):
        return None
    try:
        kinds = catalogue.find(gpu_type)
    except ConfigurationError:
        return None
    theory = theoretical(kinds[0].silicon)
    peaks = {dtype: rate.flops_per_s for dtype, rate in {**theory.reference, **theory.at_max_clock}.items()}
    reference = theory.headline.get("bfloat16")
    memory = kinds[0].memory_bytes_per_s if len({kind.memory_bytes_per_s for kind in kinds}) == 1 else 0.0
    by_clock = theoretical(replace(kinds[0].silicon, max_clock_mhz=1)).at_max_clock
    per_mhz = {dtype: rate.flops_per_s for dtype, rate in by_clock.items()}
    return Spec(peaks, None if reference is None else reference.flops_per_s, memory, per_mhz)
