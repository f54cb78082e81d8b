"""A serving replica: how many sequences run at once follows from arrivals and from what limits the batch.

By Little's law λ requests a second of n output tokens keep λ · n · t(b) sequences running, where t(b) is the time of a
decode step at batch b: weights and caches are read each time, so t hardly grows with b and tokens/s grow with it, until
the caches' reads, the arithmetic, the memory for caches, the server's own limit or the promised latency bound it.
Prompts take their share of the device's time.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mfu_sdk.provider.simulate import fabric, kernels
from mfu_sdk.provider.simulate.fabric import Path
from mfu_sdk.provider.simulate.kernels import Work
from mfu_sdk.provider.simulate.models import Transformer, Vision
from mfu_sdk.provider.simulate.noise import Floats, Jitter
from mfu_sdk.provider.simulate.power import Cooling
from mfu_sdk.provider.simulate.silicon import Gpu

PERIOD_S = 1.0
"""A step of a service: its server's parts of a second of work."""

# What a server leaves of memory to weights and caches, and its own work between two steps.
_USABLE_MEMORY = 0.90
_SCHEDULING_S = 0.8e-3
# Requests that wait beyond this many are turned away.
_LONGEST_QUEUE = 200.0


_COOL = Cooling()


@dataclass(frozen=True, slots=True)
class Service:
    """One replica and its demand. `share` is the part of the GPU that a MIG slice has (1: all of it).

    `context`: mean tokens in a sequence's cache; `prompt` and `output`: tokens of a request, 1 output for `Vision`.
    `rate_per_s`: requests that arrive, the day's mean; `swing`: by how much the day's curve departs from it, `peak_h`
    when it is highest, `changes` when it is another from then on, as a factor. `most_running`: the server's own limit.
    `latency_s`: the time per output token that it promises.
    """

    gpu: Gpu
    model: Transformer | Vision
    path: Path
    rate_per_s: float
    most_running: int
    context: float = 0.0
    prompt: float = 0.0
    output: float = 1.0
    latency_s: float | None = None
    share: float = 1.0
    swing: float = 0.2
    peak_h: float = 14.0
    changes: tuple[tuple[float, float], ...] = ()
    rest: Cooling = _COOL

    @property
    def tp(self) -> int:
        """Ranks that share each product."""
        return self.path.ranks


@dataclass(frozen=True, slots=True)
class Capacity:
    """What bounds the batch: `by_memory` and the server's own limit (`fits`), and the promise (`by_latency`)."""

    by_memory: float
    fits: int
    by_latency: int

    @property
    def usable(self) -> int:
        """The largest batch that keeps the promise and fits."""
        return max(1, min(self.fits, self.by_latency))


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of service, a row each: the batch, seconds of decode and prefill, tokens, queue, free cache."""

    running: Floats
    decode_s: Floats
    prefill_s: Floats
    comm_s: Floats
    output: Floats
    prompts: Floats
    waiting: Floats
    kv_free: Floats


def step_s(service: Service, running: float) -> float:
    """One decode step (or one forward of a `Vision` model) at batch `running`."""
    return one(service, running).busy_s + comm_s(service, running) + _SCHEDULING_S


@lru_cache(65536)
def one(service: Service, running: float) -> Work:
    """What a rank does in that step."""
    if isinstance(service.model, Vision):
        return kernels.vision_forward(service.gpu, service.model, running, service.share)
    found = kernels.decode(service.gpu, service.model, running, service.context, service.tp)
    return found.spread(service.share)


def comm_s(service: Service, running: float) -> float:
    """Its collectives: two all-reduces of the activations in each layer."""
    if service.tp == 1 or not isinstance(service.model, Transformer):
        return 0.0
    size = 2.0 * running * service.model.hidden
    return 2 * service.model.layers * fabric.seconds("all_reduce", size, service.path)


def prompt_s(service: Service) -> float:
    """The prefill of one request."""
    if isinstance(service.model, Vision) or service.prompt <= 0:
        return 0.0
    work = prompt_work(service)
    size = 2.0 * service.prompt * service.model.hidden
    comm = 0.0 if service.tp == 1 else 2 * service.model.layers * fabric.seconds("all_reduce", size, service.path)
    return work.busy_s + comm


@lru_cache(4096)
def prompt_work(service: Service) -> Work:
    """What a rank does for one prompt."""
    assert isinstance(service.model, Transformer)
    found = kernels.prefill(service.gpu, service.model, service.prompt, service.tp)
    return found.spread(service.share)


def tokens_per_s(service: Service, running: float) -> float:
    """Output tokens a second of decode at batch `running`."""
    return running / step_s(service, running)


@lru_cache(4096)
def capacity(service: Service) -> Capacity:
    """What bounds its batch. A batch of one is always possible."""
    memory = service.gpu.memory_bytes * service.share * _USABLE_MEMORY * service.tp - 2 * service.model.parameters
    if isinstance(service.model, Vision):
        by_memory = max(1.0, memory / max(1.0, 2 * service.model.sample_bytes))
    else:
        by_memory = max(1.0, memory / (service.context * service.model.kv_bytes))
    fits = max(1, int(min(by_memory, service.most_running)))
    by_latency = fits
    if service.latency_s is not None:
        sizes = range(1, fits + 1)
        by_latency = max((size for size in sizes if step_s(service, size) <= service.latency_s), default=1)
    return Capacity(by_memory, fits, by_latency)


@lru_cache(4096)
def _curve(service: Service) -> tuple[Floats, Floats]:
    """(arrivals a second, batch) from almost nothing up to the usable batch; arrivals rise with the batch."""
    usable = capacity(service).usable
    batches = np.unique(np.concatenate([[0.01, 0.1, 0.5], np.geomspace(1, usable, 48) if usable > 1 else [1.0]]))
    rates = np.array([batch / (service.output * step_s(service, max(batch, 1.0)) + batch * prompt_s(service))
                      for batch in batches.tolist()])  # fmt: skip
    return np.maximum.accumulate(rates), batches


@lru_cache(4096)
def _times(service: Service) -> tuple[list[float], list[float]]:
    """Seconds of a step, and of its collectives, at the batches of `_curve`."""
    batches = [max(each, 1.0) for each in _curve(service)[1].tolist()]
    return [step_s(service, each) for each in batches], [comm_s(service, each) for each in batches]


def rate_for(service: Service, running: float) -> float:
    """Requests a second that keep `running` sequences running."""
    rates, batches = _curve(service)
    return float(np.interp(running, batches, rates))


def loads(service: Service, jitter: Jitter, seconds: int, at_s: float, day_s: float, waiting: float) -> Load:
    """The next `seconds` seconds from virtual time `at_s` on; `day_s` is the time of day at virtual time 0."""
    clock_s = at_s + np.arange(seconds)
    curve = 1 + service.swing * np.cos(2 * np.pi * ((clock_s + day_s) / 86400 - service.peak_h / 24))
    for since_s, factor in service.changes:
        curve = np.where(clock_s >= since_s, curve * factor, curve)
    # Requests in a mean life are Poisson; over a batch's lifetime their number varies by its root.
    life = max(1.0, service.rate_per_s * service.output * 0.02)
    arrivals = service.rate_per_s * curve * jitter.factors(seconds, at_s, 1.0) * jitter.lognormal(
        seconds, min(0.25, 0.35 / life**0.5)
    )  # fmt: skip
    rates, batches = _curve(service)
    most = float(rates[-1])
    queue = waiting + np.cumsum(arrivals - most)
    queue = np.clip(queue - np.minimum(0.0, np.minimum.accumulate(queue)), 0.0, _LONGEST_QUEUE)
    served = np.where(queue > 0, most, np.minimum(arrivals, most))
    batch = np.interp(served, rates, batches)
    prefill = np.minimum(served * prompt_s(service), 0.95)
    # Below one sequence at a time the replica has nothing to do for the rest of the second.
    busy = np.minimum(1.0, batch)
    running = np.maximum(1.0, batch)
    decode = (1 - prefill) * busy
    steps_s, comms_s = _times(service)
    step, comm = np.interp(running, batches, steps_s), np.interp(running, batches, comms_s)
    output = running * decode / step
    return Load(
        running, decode, prefill, comm * decode / step, output, served * service.prompt, queue,
        np.clip(1 - running / capacity(service).by_memory, 0.0, 1.0),
    )  # fmt: skip
