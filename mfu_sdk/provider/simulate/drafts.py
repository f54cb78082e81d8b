"""Workloads before they have seats: one with a fault, one that only looks like it, one that is well."""

from dataclasses import dataclass, replace

import numpy as np

from mfu_sdk.provider.simulate import fabric, models, recipes, serving
from mfu_sdk.provider.simulate.faults import KINDS, Injected
from mfu_sdk.provider.simulate.models import Transformer
from mfu_sdk.provider.simulate.scenario import SEVERITIES, Asked, Range
from mfu_sdk.provider.simulate.serving import Service
from mfu_sdk.provider.simulate.silicon import A100, H100, H200, L40S
from mfu_sdk.provider.simulate.training import Job
from mfu_sdk.provider.simulate.workload import Restart, Serving, Training


@dataclass(frozen=True, slots=True)
class Draft:
    """A workload without seats and tenant. `link`: which machines it must have. `witnessed`: needs a second witness."""

    what: Training | Serving
    nature: str = "healthy"
    fault: Injected | None = None
    link: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    witnessed: bool = False


def faulty(asked: Asked, rng: np.random.Generator, duration_s: float, *, capped: bool) -> Draft:
    """A draft with the fault, and its severity, onset and end drawn where they are not given."""
    variant = asked.variant or recipes.one_of(rng, KINDS[asked.kind].variants)
    drawn = SEVERITIES.get((asked.kind, variant)) or SEVERITIES[asked.kind, ""]
    severity = _draw(rng, asked.severity or drawn)
    late = KINDS[asked.kind].onset is None or variant == "nic_downgraded"
    onset_s = (
        _draw(rng, asked.onset_h) * 3600
        if asked.onset_h
        else float(rng.uniform(0.25, 0.5)) * duration_s
        if late
        else 0.0
    )
    end_s = duration_s if asked.duration_h is None else onset_s + _draw(rng, asked.duration_h) * 3600
    fault = Injected(asked.kind, variant, severity, min(onset_s, duration_s), min(end_s, duration_s))
    match asked.kind:
        case "under_batched_inference":
            served = [each for each in recipes.SERVED if isinstance(each[0], Transformer) == (variant == "language")]
            service = recipes.service(rng, 1 - severity, served=served, capped=capped)
            if variant == "vision" and service.latency_s is None:
                # Without a cache only a promise says that callers could wait for a batch.
                service = recipes.with_fill(replace(service, latency_s=recipes.PROMISED_S), 1 - severity)
            return Draft(Serving(service, recipes.one_of(rng, (1, 1, 2))), "faulty", fault)
        case "poor_topology" if variant == "pcie_only":
            return Draft(Training(recipes.paired(rng)), "faulty", fault, "pcie")
        case "poor_topology" if variant == "slow_link":
            return Draft(Training(recipes.chatty(rng)), "faulty", fault)
        case "poor_topology":
            found = recipes.networked(rng)
            hit = replace(fault, rank=int(rng.integers(found.ranks)))
            return Draft(Training(found, calibrated=found.path), "faulty", hit)
        case "scaling_inefficiency":
            return Draft(Training(recipes.scaled_out(rng, severity)), "faulty", fault)
        case "configuration_drift":
            found = recipes.job(rng, ranks=(1, 2, 4, 8, 16), capped=capped, wanted=lambda job: _may_drift(job, variant))
            other = "tf32" if rng.random() < 0.6 else "float32"
            found = replace(found, kernels=replace(found.kernels, other_dtype=other))
            return Draft(Training(found), "faulty", fault)
        case "input_bound":
            return Draft(Training(recipes.job(rng, ranks=(1, 2, 4, 8), capped=capped)), "faulty", fault)
        case "thermal_or_power":
            sizes = (1, 2, 4, 8) if variant == "hot_gpu" else (4, 8, 16)
            found = recipes.job(rng, ranks=sizes, capped=capped)
            return Draft(Training(found), "faulty", replace(fault, rank=int(rng.integers(found.ranks))))
        case "straggler":
            found = recipes.job(rng, ranks=(4, 8, 16), capped=capped)
            return Draft(Training(found), "faulty", replace(fault, rank=int(rng.integers(found.ranks))))
        case "idle_allocation" if variant == "abandoned":
            found = recipes.job(rng, ranks=(1, 2, 4, 8), capped=capped)
            return Draft(Training(found), "faulty", replace(fault, severity=1.0), end_s=fault.onset_s, witnessed=True)
        case "idle_allocation":
            service = recipes.service(rng, float(rng.uniform(0.5, 0.8)), capped=capped)
            return Draft(Serving(service, recipes.one_of(rng, (2, 3, 4))), "faulty", fault)
        case "accounting":
            gpus = (H100, H200, A100)
            found = recipes.job(rng, ranks=(1, 2, 4, 8), gpus=gpus, capped=capped)
            return Draft(Training(found), "faulty", fault, witnessed=True)
        case kind:
            raise AssertionError(kind)


def negative(name: str, rng: np.random.Generator, duration_s: float, *, capped: bool) -> Draft:
    """A draft that looks like a fault and is none."""
    middle_s = float(rng.uniform(0.3, 0.6)) * duration_s
    big = (H100, H200, A100)
    match name:
        case "kv_bound":
            model = recipes.one_of(rng, (models.LLAMA_7B, models.LLAMA_13B))
            # Long answers: where prompts were long the device would be full of them before the cache is.
            prompt, output = float(rng.uniform(500, 2000)), float(rng.uniform(9000, 16000))
            service = Service(
                recipes.one_of(rng, big), model, fabric.best(H100, 1), 1.0, 256, prompt + output / 2, prompt, output,
                swing=0.05,
            )  # fmt: skip
            return Draft(Serving(recipes.with_fill(service, 0.92), 1), name)
        case "latency_bound":
            service = Service(
                recipes.one_of(rng, big), models.LLAMA_8B, fabric.best(H100, 1), 1.0, 256, 900, 600, 300, swing=0.1
            )
            promise = serving.step_s(service, float(rng.integers(12, 32)))
            return Draft(Serving(recipes.with_fill(replace(service, latency_s=promise), 0.9), 1), name)
        case "prefill_heavy":
            service = Service(
                recipes.one_of(rng, big), models.LLAMA_8B, fabric.best(H100, 1), 1.0, 128, 6000, 6000, 16, swing=0.1
            )
            return Draft(Serving(replace(service, rate_per_s=0.75 / serving.prompt_s(service)), 1), name)
        case "memory_bound":
            service = recipes.service(rng, 0.5, served=((models.LLAMA_8B, 1), (models.LLAMA_70B, 4)))
            found = replace(service, most_running=32, latency_s=None, swing=0.05)
            return Draft(Serving(recipes.with_fill(found, 0.95), 1), name)
        case "batch_change":
            # To two thirds of the batch: where less than that is left, replicas are too many whatever was planned.
            service = recipes.service(rng, 0.7)
            left = recipes.with_fill(service, 0.47).rate_per_s / service.rate_per_s
            return Draft(Serving(replace(service, changes=((middle_s, left),)), 1), name)
        case "small_messages":
            return Draft(Training(recipes.tiny_messages(rng)), name)
        case "congestion":
            shaped = recipes.networked(rng)
            often = max(1, int(duration_s / 36000))
            episodes = tuple((at, at + 300.0, 5.0) for at in rng.uniform(0, duration_s, often).tolist())
            return Draft(Training(replace(shaped, congested=episodes), calibrated=shaped.path), name)
        case "shared_cap":
            shaped = recipes.job(rng, ranks=(1, 2, 4, 8), gpus=(recipes.CAPPED,), capped=True)
            return Draft(Training(shaped), name)
        case "small_model":
            shaped = Job(recipes.one_of(rng, (*big, L40S)), models.MOBILENET, fabric.best(H100, 1), 512, load_share=0.4)
            return Draft(Training(shaped), name)
        case "changed_intent":
            first = recipes.job(rng, ranks=(4, 8), gpus=recipes.NVLINKED, capped=capped)
            later = recipes.job(
                rng, ranks=(first.ranks,), gpus=(first.gpu,), capped=capped, wanted=lambda job: job.model != first.model
            )  # fmt: skip
            return Draft(Training(first, versions=((middle_s, later),)), name)
        case "warm_up":
            return Draft(Training(replace(recipes.job(rng, ranks=(1, 2, 4, 8), capped=capped), cold_from_s=0.0)), name)
        case _:
            raise AssertionError(name)


def well(rng: np.random.Generator, duration_s: float, *, capped: bool, largest: int) -> Draft:
    """A healthy workload of at most `largest` GPUs, with a schedule of its own; some crash and go on."""
    start_s, end_s = 0.0, duration_s
    if rng.random() < 0.3:
        start_s = float(rng.uniform(0, 0.4)) * duration_s
        end_s = start_s + float(rng.uniform(0.45, 0.6)) * duration_s
    if rng.random() < 0.35:
        served = [each for each in recipes.SERVED if each[1] <= largest]
        service = recipes.service(rng, float(rng.uniform(0.5, 0.8)), served=served, capped=capped)
        most = max(1, min(4, largest // service.tp))
        return Draft(Serving(service, int(rng.integers(1, most + 1))), start_s=start_s, end_s=end_s)
    if largest >= 2 and rng.random() < 0.05:
        return Draft(Training(recipes.paired(rng)), start_s=start_s, end_s=end_s)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= largest]
    found = recipes.job(rng, ranks=sizes, capped=capped)
    restarts: tuple[Restart, ...] = ()
    if rng.random() < 0.12:
        at_s = start_s + float(rng.uniform(0.3, 0.8)) * (end_s - start_s)
        restarts = (
            Restart(at_s, float(rng.uniform(120, 600)), float(rng.uniform(60, 1500)), recipes.one_of(rng, (79, 94))),
        )
    return Draft(Training(found, restarts=restarts), start_s=start_s, end_s=end_s)


def _may_drift(job: Job, variant: str) -> bool:
    if variant == "batch":
        return job.sequences >= 4
    if variant == "attention":
        return isinstance(job.model, Transformer) and job.seq >= 2048
    if variant == "checkpointing":
        return isinstance(job.model, Transformer)
    return True


def _draw(rng: np.random.Generator, between: Range) -> float:
    return float(rng.uniform(*between))
