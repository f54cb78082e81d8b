"""Synchronous training: what one step takes, part by part, on every rank.

A step begins where the last one ended. Each rank waits for its data, computes, and leaves gaps that its host could not
fill; the last rank to come decides when the exposed part of the collectives begins, and the others' wait is skew. A
fault is a change of the `Job`; with the same noise, the same steps without it are the counterfactual.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mfu_sdk.provider.simulate import fabric, kernels, power
from mfu_sdk.provider.simulate.fabric import Path
from mfu_sdk.provider.simulate.kernels import Kernels, Work
from mfu_sdk.provider.simulate.models import Transformer, Vision
from mfu_sdk.provider.simulate.noise import Floats, Jitter
from mfu_sdk.provider.simulate.power import Clock, Cooling
from mfu_sdk.provider.simulate.silicon import Gpu

# How much of a step's computation gradients (or shards) travel behind: backward alone, or nearly all of it (FSDP,
# arXiv 2304.11277, section 4.3).
_OVERLAP_REPLICATED, _OVERLAP_SHARDED = 0.55, 0.85
_BUCKET_BYTES = 25e6
# Taking a ready batch over, and what remains of a host's work between steps.
_FETCH_S, _BETWEEN_STEPS_S = 0.4e-3, 1.5e-3
_PREFETCHED = 4
_RANK_SIGMA = 0.0025
_CONGESTION_SIGMA = 0.08
# A cold cache: reading takes this many times as long at the start, and warms with this time constant.
_COLD, _COLD_S = 6.0, 240.0


_AS_SHIPPED, _COOL = Kernels(), Cooling()


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration of a training run in one state of its world.

    `sequences` is the micro-batch of a data-parallel rank, of images for a `Vision` model; `load_share` is what its
    loader needs for a batch over what the healthy step takes. `cooling` and `slow` hold ranks that are not like
    `rest`: their cooling, and the factor on their device time. `congested`: (from, until, factor on communication),
    virtual seconds. `exchanges`: how often shards are exchanged, over what the configuration implies. `offloaded`:
    whether the optimizer runs on the host behind the next step's computation (arXiv 2101.06840, section 5), which costs
    no time.
    """

    gpu: Gpu
    model: Transformer | Vision
    path: Path
    sequences: int
    seq: int = 1
    accumulation: int = 1
    tp: int = 1
    sharded: bool = False
    kernels: Kernels = _AS_SHIPPED
    load_share: float = 0.5
    loader: float = 1.0
    rest: Cooling = _COOL
    cooling: tuple[tuple[int, Cooling], ...] = ()
    slow: tuple[tuple[int, float], ...] = ()
    congested: tuple[tuple[float, float, float], ...] = ()
    exchanges: float = 1.0
    offloaded: bool = False
    cold_from_s: float | None = None

    @property
    def ranks(self) -> int:
        """The world size."""
        return self.path.ranks

    @property
    def tokens(self) -> int:
        """A rank's share of a step's tokens."""
        return self.sequences * self.seq * self.accumulation // self.tp


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a step's collectives are: seconds that could hide, seconds that cannot, and bytes by the bus convention.

    `pcie_bytes`: what each rank sends, and as much receives, over PCIe for them.
    """

    hidden_s: float
    tail_s: float
    bare_s: float
    bus_bytes: float
    pcie_bytes: float

    @property
    def total_s(self) -> float:
        """Seconds that links are busy."""
        return self.hidden_s + self.bare_s


@dataclass(frozen=True, slots=True)
class Steady:
    """The parts of a job's step without noise; `clocks` of each rank."""

    job: Job
    work: Work
    traffic: Traffic
    clocks: tuple[Clock, ...]
    load_s: float
    step_s: float
    compute_s: float
    exposed_s: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Noise:
    """What is drawn for some steps: factors on device time, on each rank's, on links, on the host, on the loader."""

    common: Floats
    ranks: Floats
    links: Floats
    host: Floats
    loader: Floats

    @classmethod
    def draw(cls, jitter: Jitter, steps: int, ranks: int, at_s: float, step_s: float) -> "Noise":
        """That of the next `steps` steps from virtual time `at_s` on."""
        return cls(
            jitter.factors(steps, at_s, step_s),
            jitter.ranks(steps, ranks, _RANK_SIGMA),
            jitter.lognormal(steps, _CONGESTION_SIGMA),
            jitter.lognormal(steps, 0.1),
            jitter.lognormal(steps, 0.15),
        )


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each of n steps: `data_s`, `comm_s`, `host_s` and `total_s` are (n,), `skew_s` and `clock` (n, ranks).

    `links_s`: how long the links were busy, hidden or not. `credit_s`: what the loader is ahead afterwards.
    """

    data_s: Floats
    comm_s: Floats
    skew_s: Floats
    host_s: Floats
    total_s: Floats
    clock: Floats
    links_s: Floats
    credit_s: float


@lru_cache(4096)
def steady(job: Job) -> Steady:
    """The parts of a step of `job`."""
    work = _work(job)
    traffic = _traffic(job, job.path)
    gap_s = _BETWEEN_STEPS_S + max(0.0, work.launch_s - work.busy_s)
    clocks = _clocks(job, work, gap_s)
    compute_s = max(_compute_s(work, each.ratio) * factor for each, factor in zip(clocks, _slowness(job), strict=True))
    exposed_s = _exposed_s(job, traffic, compute_s)
    healthy_s = _compute_s(work, power.clock(job.gpu, _activity(work, gap_s), job.rest).ratio) + gap_s + exposed_s
    load_s = job.load_share * healthy_s / job.loader
    rest_s = compute_s + gap_s + exposed_s
    return Steady(
        job, work, traffic, clocks, load_s, max(rest_s + _FETCH_S, load_s), compute_s, exposed_s, gap_s
    )  # fmt: skip


def ideal_links_ratio(job: Job) -> float:
    """Communication over computation on the best links that this GPU type can have."""
    ideal = _traffic(job, fabric.best(job.gpu, job.ranks))
    return ideal.total_s / _work(job).busy_s


def calibrated_s(job: Job, calibrated: Path) -> float:
    """What the tenant's SDK expects of a step: kernels at the clock of a full load, links as they were measured."""
    work = _work(job)
    at_full_load = power.clock(job.gpu, 1.0, job.rest).ratio
    compute_s = _compute_s(work, at_full_load)
    return compute_s + _exposed_s(job, _traffic(job, calibrated), compute_s)


def bus_rate(job: Job, over: Path) -> float | None:
    """Bytes/s by the bus convention of this job's collectives over a path; None for one rank."""
    traffic = _traffic(job, over)
    return traffic.bus_bytes / traffic.total_s if traffic.total_s > 0 else None


def times(state: Steady, noise: Noise, at_s: float, credit_s: float, cooled: tuple[float, Floats] | None) -> Times:
    """The steps that begin at virtual time `at_s`, with the loader `credit_s` ahead.

    `cooled`: (when the cooling changed, each rank's clock until then), from which clocks move on.
    """
    job, work = state.job, state.work
    steps = len(noise.common)
    starts_s = at_s + state.step_s * np.arange(steps)
    target = np.array([each.ratio for each in state.clocks])
    clock: Floats = np.broadcast_to(target, (steps, job.ranks))
    if cooled is not None:
        since_s, before = cooled
        warmed = 1 - np.exp(-np.maximum(0.0, starts_s - since_s) / power.WARMING_S)
        clock = before + (target - before) * warmed[:, None]
    own = (work.tensor_s / clock + work.memory_s) * noise.ranks * noise.common[:, None]
    for rank, factor in job.slow:
        own[:, rank] *= factor
    latest = own.max(axis=1)
    links = noise.links.copy()
    for since_s, until_s, factor in job.congested:
        links[(starts_s >= since_s) & (starts_s < until_s)] *= factor
    traffic = state.traffic
    overlap = _OVERLAP_SHARDED if job.sharded else _OVERLAP_REPLICATED
    comm = np.maximum(0.0, traffic.hidden_s * links - overlap * latest)
    comm += (traffic.tail_s + traffic.bare_s) * links
    host = state.gap_s * noise.host
    load = state.load_s * noise.loader
    if job.cold_from_s is not None:
        load = load * (1 + _COLD * np.exp(-np.maximum(0.0, starts_s - job.cold_from_s) / _COLD_S))
    busy = latest + comm + host
    data, credit_s = _waits(load, busy, credit_s, _PREFETCHED * state.load_s)
    total = busy + data
    return Times(data, comm, latest[:, None] - own, host, total, clock, traffic.total_s * links, credit_s)


def _waits(load: Floats, busy: Floats, credit_s: float, most_s: float) -> tuple[Floats, float]:
    """How long each step waits for a loader that works ahead by at most `most_s`."""
    waits = np.full(len(load), _FETCH_S)
    if float(load.max()) <= float(busy.min()):
        return waits, most_s
    ahead = credit_s
    for i, spare in enumerate((busy - load).tolist()):
        ahead += spare
        if ahead < 0:
            waits[i] -= ahead
            ahead = 0.0
        elif ahead > most_s:
            ahead = most_s
    return waits, ahead


def _work(job: Job) -> Work:
    if isinstance(job.model, Vision):
        return kernels.vision_training(job.gpu, job.model, job.sequences, job.kernels).times(job.accumulation)
    once = kernels.training(job.gpu, job.model, job.sequences, job.seq, job.tp, job.kernels)
    shards = job.ranks if job.sharded else job.tp
    return once.times(job.accumulation) + kernels.optimizer(job.gpu, job.model.parameters / shards)


def _traffic(job: Job, over: Path) -> Traffic:
    hidden_s = bare_s = moved = crossed = tail_s = 0.0
    replicas = job.ranks // job.tp
    if replicas > 1:
        # Data parallelism among ranks of one tensor shard: fewer ranks of each machine take part.
        among = over if job.tp == 1 else _shards(over, job.tp)
        weights = 2 * job.model.parameters / job.tp
        if job.sharded:
            layers = job.model.layers if isinstance(job.model, Transformer) else 20
            # Gathered in forward and in backward, gradients scattered, each micro-batch; beside tensor parallelism
            # shards hold the optimizer's state alone, and that is exchanged once a step (arXiv 1910.02054, section 5).
            each_s = fabric.seconds("all_gather", weights / layers, among)
            passes = job.exchanges * (3 * job.accumulation if job.tp == 1 else 2)
            hidden_s += passes * layers * each_s
            tail_s = 2 * each_s
            moved += passes * fabric.bus_bytes("all_gather", weights, among.ranks)
            crossed += passes * fabric.pcie_bytes("all_gather", weights, among)
        else:
            buckets = max(1, math.ceil(2 * weights / _BUCKET_BYTES))
            each_s = fabric.seconds("all_reduce", 2 * weights / buckets, among)
            hidden_s += buckets * each_s
            tail_s = each_s
            moved += fabric.bus_bytes("all_reduce", 2 * weights, among.ranks)
            crossed += fabric.pcie_bytes("all_reduce", 2 * weights, among)
    if job.tp > 1 and isinstance(job.model, Transformer):
        # Two all-reduces of the activations forward and two backward in each layer, before anything can go on
        # (arXiv 1909.08053, section 3).
        size = 2.0 * job.sequences * job.seq * job.model.hidden
        count = 4 * job.model.layers * job.accumulation
        within = replace(over.within_a_machine(), ranks_inside=job.tp)
        bare_s += count * fabric.seconds("all_reduce", size, within)
        moved += count * fabric.bus_bytes("all_reduce", size, job.tp)
        crossed += count * fabric.pcie_bytes("all_reduce", size, within)
    return Traffic(hidden_s, tail_s, bare_s, moved, crossed)


def _shards(over: Path, tp: int) -> Path:
    return replace(over, ranks_inside=max(1, over.ranks_inside // tp))


def _exposed_s(job: Job, traffic: Traffic, compute_s: float) -> float:
    overlap = _OVERLAP_SHARDED if job.sharded else _OVERLAP_REPLICATED
    return max(0.0, traffic.hidden_s - overlap * compute_s) + traffic.tail_s + traffic.bare_s


def _clocks(job: Job, work: Work, gap_s: float) -> tuple[Clock, ...]:
    activity = _activity(work, gap_s)
    special = dict(job.cooling)
    return tuple(power.clock(job.gpu, activity, special.get(rank, job.rest)) for rank in range(job.ranks))


def _activity(work: Work, gap_s: float) -> float:
    return power.activity_of(work.tensor_s, work.memory_s, gap_s)


def _slowness(job: Job) -> tuple[float, ...]:
    special = dict(job.slow)
    return tuple(special.get(rank, 1.0) for rank in range(job.ranks))


def _compute_s(work: Work, clock: float) -> float:
    return work.tensor_s / clock + work.memory_s
