"""Jobs and services as their owners would tune them: drawn, and drawn again until nothing of theirs is wasted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from mfu_sdk.provider.simulate import fabric, models, serving, training
from mfu_sdk.provider.simulate.kernels import Kernels
from mfu_sdk.provider.simulate.models import Transformer, Vision
from mfu_sdk.provider.simulate.power import Cooling
from mfu_sdk.provider.simulate.serving import Service
from mfu_sdk.provider.simulate.silicon import A100, H100, H100_PCIE, H200, L40S, Gpu
from mfu_sdk.provider.simulate.training import Job

T = TypeVar("T")

FLEET = ((H100, 0.40), (A100, 0.27), (H200, 0.10), (L40S, 0.15), (H100_PCIE, 0.08))
"""The mix of GPU types, in shares of draws."""

NVLINKED = (H100, H200, A100)
CAPPED: Gpu = A100
"""The type whose owner has lowered the power limit of all of its GPUs, where a plan has such a cohort."""

CAP = Cooling(limit=0.72)

# What an owner who has tuned a job leaves to links and to the host, as shares of the step.
_TUNED_EXPOSED, _TUNED_GAP = 0.03, 0.03


PROMISED_S = 0.25
"""What services of images promise of an answer, where they promise anything."""

# What the day's peak takes of all that a replica can serve.
_PEAK_LOAD = 0.95


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model with the sizes at which it is trained."""

    model: Transformer | Vision
    ranks: tuple[int, ...]
    tp: int
    sequences: tuple[int, ...]
    seq: tuple[int, ...]
    accumulation: tuple[int, ...]
    sharded: bool


TRAINED = (
    Recipe(models.GPT_125M, (1, 2, 4), 1, (16, 32), (1024,), (2, 4), sharded=False),
    Recipe(models.VIT_L, (1, 2, 4, 8), 1, (64, 128), (1,), (1, 2), sharded=False),
    Recipe(models.RESNET_50, (1, 2), 1, (256, 512), (1,), (1, 2), sharded=False),
    Recipe(models.OPT_1B, (2, 4, 8), 1, (4, 8), (2048,), (4, 8), sharded=False),
    Recipe(models.LLAMA_3B, (4, 8), 1, (2, 4), (4096,), (4, 8), sharded=True),
    Recipe(models.LLAMA_8B, (8, 16, 32), 1, (1, 2), (4096, 8192), (4, 8), sharded=True),
    Recipe(models.LLAMA_13B, (16, 32), 1, (1, 2), (4096,), (4, 8), sharded=True),
    Recipe(models.LLAMA_70B, (32, 64), 8, (1, 2), (4096, 8192), (16, 32), sharded=True),
)

SERVED: tuple[tuple[Transformer | Vision, int], ...] = (
    (models.LLAMA_8B, 1), (models.LLAMA_13B, 1), (models.LLAMA_3B, 1), (models.LLAMA_70B, 4), (models.VIT_L, 1),
)  # fmt: skip


def job(
    rng: np.random.Generator,
    *,
    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32),
    gpus: Sequence[Gpu] | None = None,
    wanted: Callable[[Job], bool] = lambda _: True,
    capped: bool = False,
) -> Job:
    """A tuned training job of one of these sizes, on one of these types, that is `wanted`.

    `capped`: whether the fleet has a cohort under a shared power limit.
    """
    for _ in range(5000):
        recipe = TRAINED[int(rng.integers(len(TRAINED)))]
        sizes = [size for size in recipe.ranks if size in ranks]
        gpu = _gpu(rng, gpus)
        # Whoever exchanges much rents machines with NVLink.
        if not sizes or ((recipe.sharded or recipe.tp > 1) and gpu not in NVLINKED):
            continue
        size = one_of(rng, sizes)
        if size > gpu.nvlink_gpus and size > 1 and gpu not in NVLINKED and not isinstance(recipe.model, Vision):
            continue
        found = Job(
            gpu=gpu,
            model=recipe.model,
            path=fabric.best(gpu, size),
            sequences=one_of(rng, recipe.sequences),
            seq=one_of(rng, recipe.seq),
            accumulation=one_of(rng, recipe.accumulation),
            tp=recipe.tp,
            sharded=recipe.sharded,
            kernels=Kernels(quality=float(rng.uniform(0.82, 1.0))),
            load_share=float(rng.uniform(0.3, 0.65)),
            rest=CAP if capped and gpu is CAPPED else Cooling(),
        )
        if tuned(found) and wanted(found):
            return found
    raise AssertionError("no job of this catalogue is wanted")


def tuned(found: Job) -> bool:
    """Whether links and host cost next to nothing; tensor parallelism always shows its all-reduces."""
    state = training.steady(found)
    exposed = state.exposed_s if found.tp == 1 else state.exposed_s - state.traffic.bare_s
    return exposed / state.step_s < _TUNED_EXPOSED and state.gap_s / state.step_s < _TUNED_GAP


def service(
    rng: np.random.Generator,
    fill: float,
    *,
    served: Sequence[tuple[Transformer | Vision, int]] = SERVED,
    gpus: Sequence[Gpu] | None = None,
    capped: bool = False,
) -> Service:
    """A service whose demand keeps `fill` of its usable batch running, on the average of the day.

    Drawn again where the day's peak leaves no room for that: long prompts fill a device before its batch is full.
    """
    for _ in range(500):
        found = _service(rng, served, gpus, capped=capped)
        filled = with_fill(found, fill)
        if filled.rate_per_s >= 0.999 * serving.rate_for(found, max(0.05, fill * serving.capacity(found).usable)):
            return filled
    raise AssertionError("no service of this catalogue is so full")


def _service(
    rng: np.random.Generator,
    served: Sequence[tuple[Transformer | Vision, int]],
    gpus: Sequence[Gpu] | None,
    *,
    capped: bool,
) -> Service:
    model, tp = served[int(rng.integers(len(served)))]
    gpu = _gpu(rng, gpus or (NVLINKED if tp > 1 else None))
    if isinstance(model, Vision):
        found = Service(
            gpu, model, fabric.best(gpu, tp), 1.0, int(one_of(rng, (16, 32, 64))),
            latency_s=None if rng.random() < 0.5 else PROMISED_S, swing=float(rng.uniform(0.02, 0.08)),
            peak_h=float(rng.uniform(9, 20)),
        )  # fmt: skip
    else:
        prompt, output = float(rng.uniform(200, 900)), float(rng.uniform(150, 500))
        found = Service(
            gpu, model, fabric.best(gpu, tp), 1.0, one_of(rng, (64, 128, 256)), prompt + output / 2, prompt,
            output, None if rng.random() < 0.5 else float(rng.uniform(0.05, 0.12)),
            swing=float(rng.uniform(0.05, 0.25)),
            peak_h=float(rng.uniform(9, 20)),
        )  # fmt: skip
    return replace(found, rest=CAP if capped and gpu is CAPPED else Cooling())


def with_fill(found: Service, fill: float) -> Service:
    """The same service with demand for `fill` of its usable batch, never so much that the day's peak overloads it."""
    usable = serving.capacity(found).usable
    most = _PEAK_LOAD * serving.rate_for(found, usable) / (1 + found.swing)
    return replace(found, rate_per_s=min(most, serving.rate_for(found, max(0.05, fill * usable))))


def scaled_out(rng: np.random.Generator, severity: float) -> Job:
    """A job that was spread over so many ranks that each has little to compute between exchanges.

    As a fixed global batch does when ranks are added: the more severe, the shorter a rank's only sequence. What it
    exchanges over what it computes, on the best links, goes from 0.3 at severity 0 to 2.3.
    """
    gpu = _gpu(rng, NVLINKED)
    model = one_of(rng, (models.LLAMA_8B, models.LLAMA_13B))
    found = Job(
        gpu, model, fabric.best(gpu, one_of(rng, (16, 32))), 1, 64, 1, 1, sharded=True,
        kernels=Kernels(quality=float(rng.uniform(0.9, 1.0))), load_share=float(rng.uniform(0.2, 0.4)),
    )  # fmt: skip
    wanted = 0.3 + 2 * severity
    lengths = (replace(found, seq=seq) for seq in range(128, 16384 + 64, 64))
    return next((job for job in lengths if training.ideal_links_ratio(job) <= wanted), replace(found, seq=16384))


def paired(rng: np.random.Generator) -> Job:
    """A job of two ranks that share each product, made for a pair with an NVLink bridge."""
    return Job(
        H100_PCIE, models.LLAMA_3B, fabric.path(H100_PCIE, 2, "nvlink"), one_of(rng, (1, 2, 4)), 4096,
        one_of(rng, (4, 8)), 2,
        kernels=Kernels(quality=float(rng.uniform(0.9, 1.0))), load_share=float(rng.uniform(0.3, 0.6)),
    )  # fmt: skip


def chatty(rng: np.random.Generator) -> Job:
    """A job in one machine: replicated ones with long accumulation hide even a bad path, sharded ones feel it most."""
    gpu = _gpu(rng, NVLINKED)
    model, sequences, seq, accumulation = one_of(rng, (
        (models.LLAMA_8B, 1, 4096, 2), (models.LLAMA_8B, 2, 8192, 4), (models.LLAMA_3B, 2, 4096, 2),
        (models.OPT_1B, 4, 2048, 2), (models.OPT_1B, 4, 2048, 8), (models.OPT_1B, 8, 2048, 16),
        (models.GPT_125M, 16, 1024, 4),
    ))  # fmt: skip
    return Job(
        gpu, model, fabric.best(gpu, 8), sequences, seq, accumulation, 1,
        sharded=model in (models.LLAMA_8B, models.LLAMA_3B), kernels=Kernels(quality=float(rng.uniform(0.9, 1.0))),
        load_share=float(rng.uniform(0.3, 0.6)),
    )  # fmt: skip


def networked(rng: np.random.Generator) -> Job:
    """A job over several machines that hides its collectives, but not by far: it feels a slow NIC."""
    return scaled_out(rng, float(rng.uniform(0.08, 0.2)))


def tiny_messages(rng: np.random.Generator) -> Job:
    """A machine's eight GPUs that share each product of short sequences: small all-reduces, none of them hidden."""
    gpu = _gpu(rng, NVLINKED)
    return Job(
        gpu, one_of(rng, (models.LLAMA_3B, models.LLAMA_8B)), fabric.best(gpu, 8), 1, one_of(rng, (1024, 2048)),
        one_of(rng, (4, 8)), 8, kernels=Kernels(quality=float(rng.uniform(0.9, 1.0))),
        load_share=float(rng.uniform(0.2, 0.4)),
    )  # fmt: skip


def _gpu(rng: np.random.Generator, among: Sequence[Gpu] | None) -> Gpu:
    kinds = [(gpu, share) for gpu, share in FLEET if among is None or gpu in among]
    at = float(rng.random()) * sum(share for _, share in kinds)
    for gpu, share in kinds:
        at -= share
        if at < 0:
            return gpu
    return kinds[-1][0]


def one_of(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of them, each as likely."""
    return options[int(rng.integers(len(options)))]
