"""A scenario onto machines and tenants: faults first, then what only looks like one, then what is well."""

import math
from dataclasses import replace

import numpy as np

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.simulate import drafts, fabric, models, recipes, slices
from mfu_sdk.provider.simulate.drafts import Draft
from mfu_sdk.provider.simulate.faults import KINDS, Injected
from mfu_sdk.provider.simulate.models import Transformer, Vision
from mfu_sdk.provider.simulate.noise import generator
from mfu_sdk.provider.simulate.outgoing import PROVIDER
from mfu_sdk.provider.simulate.premises import MACHINE, Premises, Tenant, slice_of, tenants
from mfu_sdk.provider.simulate.scenario import SEVERITIES, Asked, Scenario
from mfu_sdk.provider.simulate.sender import Seat, hashed
from mfu_sdk.provider.simulate.serving import Service
from mfu_sdk.provider.simulate.silicon import A100, H100, Gpu
from mfu_sdk.provider.simulate.training import Job
from mfu_sdk.provider.simulate.workload import Plan, Serving, Sliced, Training, Workload

WAITING = "4g.40gb"
"""The profile that waits where slices are stranded."""

QUEUE_STEP_S = 900.0
_STRANDED = (("2g.20gb", "2g.20gb"), ("3g.40gb", "2g.20gb"), ("3g.40gb", "3g.40gb"), ("2g.20gb", "1g.10gb", "1g.10gb"))
_RIGHT_SIZED = (("1g.10gb",) * 7, ("4g.40gb", "3g.40gb"), ("4g.40gb", "2g.20gb", "1g.10gb"), ("7g.80gb",))


def plan(gpus: int, duration_s: float, scenario: Scenario, seed: int) -> Plan:
    """The fleet. Raises `ConfigurationError` where the faults of a file do not fit on so many GPUs."""
    if gpus < 1:
        raise ConfigurationError(f"--gpus {gpus}: must be at least 1")
    if not 0 < duration_s <= 366 * 86400:
        raise ConfigurationError(f"--hours {duration_s / 3600:g}: must be above 0 and at most {366 * 24}")
    for asked in scenario.faults:
        if asked.onset_h is not None and asked.onset_h[0] * 3600 >= duration_s:
            raise ConfigurationError(
                f"{asked.kind}: onset_h {asked.onset_h[0]:g} lies beyond --hours {duration_s / 3600:g};"
                " begin it earlier"
            )
    return _Planner(gpus, duration_s, scenario, seed).plan()


class _Planner:
    def __init__(self, gpus: int, duration_s: float, scenario: Scenario, seed: int) -> None:
        self._gpus, self._duration_s, self._scenario, self._seed = gpus, duration_s, scenario, seed
        self._rng = generator(seed, "plan")
        self._premises = Premises(seed, gpus, self._rng)
        self._tenants = tenants(seed, gpus, scenario.missing)
        self._capped = scenario.hard_negatives.get("shared_cap", 0) > 0
        self._workloads: list[Workload] = []
        self._sliced: list[Sliced] = []
        waits = [asked for asked in scenario.faults if asked.kind == "mig_fragmentation"]
        self._waiting = self._queue_of(waits[0]) if waits else None

    def plan(self) -> Plan:
        for asked in self._scenario.faults:
            for _ in range(asked.count):
                if self._scenario.fill and self._premises.left < (1 - self._scenario.fit_faults) * self._gpus:
                    break
                if not self._fault(asked) and not self._scenario.fill:
                    total = sum(each.count for each in self._scenario.faults)
                    raise ConfigurationError(
                        f"--gpus {self._gpus}: too few for the {total} workloads with faults, {asked.kind} found no"
                        " room; give more GPUs or ask for fewer faults"
                    )
        for name, count in self._scenario.hard_negatives.items():
            for _ in range(count):
                self._negative(name)
        for largest in (size for size in (32, 8, 4, 2, 1) if size <= self._scenario.largest):
            misses = 0
            while misses < 6 and self._premises.left > 0:
                draft = drafts.well(self._rng, self._duration_s, capped=self._capped, largest=largest)
                misses = 0 if self._placed(draft) else misses + 1
        self._premises.finish()
        names = [tenant.name for tenant in self._tenants]
        return Plan(
            self._seed,
            self._duration_s,
            tuple(self._premises.hosts),
            tuple(self._workloads),
            tuple(self._sliced),
            self._queue(),
            {
                name: f"simulated-{hashed(12, 'token', self._seed, name).hex()}"
                for name in (*names, PROVIDER, "operator")
            },
        )

    # --- one workload ---

    def _fault(self, asked: Asked) -> bool:
        if asked.kind == "mig_fragmentation":
            assert self._waiting is not None
            return self._cut(recipes.one_of(self._rng, _STRANDED), "faulty", self._waiting)
        draft = drafts.faulty(asked, self._rng, self._duration_s, capped=self._capped)
        return self._placed(draft)

    def _negative(self, name: str) -> bool:
        if name == "right_sized_mig":
            return self._cut(recipes.one_of(self._rng, _RIGHT_SIZED), name, None)
        if name == "placeable_mig":
            return self._cut(("3g.40gb",), name, None)
        return self._placed(drafts.negative(name, self._rng, self._duration_s, capped=self._capped))

    def _placed(self, draft: Draft) -> bool:
        what = draft.what
        if isinstance(what, Training):
            gpu, ranks = what.job.gpu, what.job.ranks
            if self._capped and gpu is recipes.CAPPED:
                # All GPUs of the type have the limit, whatever recipe their job is of.
                what = replace(what, job=replace(what.job, rest=recipes.CAP))
            if draft.nature == "healthy" and self._is_offloaded(what.job):
                what = replace(what, job=replace(what.job, offloaded=True))
        else:
            gpu, ranks = what.service.gpu, what.service.tp * what.replicas
            if self._capped and gpu is recipes.CAPPED:
                what = replace(what, service=replace(what.service, rest=recipes.CAP))
        link = draft.link
        seats = self._premises.take(gpu, ranks, link)
        if seats is None and isinstance(what, Serving):
            what = replace(what, replicas=1)
            seats = self._premises.take(gpu, what.service.tp, link)
        if seats is None:
            return False
        tenant = self._tenant(draft)
        exporter = tenant.profile == "dcgm_only" or draft.witnessed or bool(self._rng.random() < 0.3)
        number, served = len(self._workloads), isinstance(what, Serving)
        model = what.job.model if isinstance(what, Training) else what.service.model
        name = f"{model.name}-{_size(model)}-{'serve' if served else 'train'}-{number:03d}"
        end_s = draft.end_s if draft.end_s is not None else self._duration_s
        idle = draft.fault is not None and draft.fault.kind == "idle_allocation"
        self._workloads.append(
            Workload(
                tenant.name, name, gpu, what, seats, draft.start_s, end_s, self._duration_s if idle else end_s,
                draft.nature, (draft.fault,) if draft.fault else (), tenant.signals,
                dcgm=exporter and tenant.profile != "nothing",
                contract=tenant.contract if served or tenant.contract != "per_token" else "on_demand",
                allocation_id=f"slurm-{self._seed}-{number:05d}", bias=self._bias(),
                link_best="pcie" if link == "pcie" else ("nvlink" if gpu.nvlink_gpus else "pcie"),
            )
        )  # fmt: skip
        return True

    def _is_offloaded(self, job: Job) -> bool:
        """Some of those on one machine; by a stream of its own."""
        alike = isinstance(job.model, Transformer) and 1 < job.ranks <= MACHINE
        return alike and bool(generator(self._seed, "offloaded", len(self._workloads)).random() < 0.15)

    def _tenant(self, draft: Draft) -> Tenant:
        # Nobody can be asked to find, or not to find, a fault of which nothing is seen: who runs no SDK is well.
        seen = [each for each in self._tenants if draft.nature == "healthy" or each.signals is not None]
        return recipes.one_of(self._rng, seen)

    def _bias(self) -> float:
        # A roofline knows shapes and rates and not everything else: expectations lie a little too high, and scatter.
        return float(1 + np.clip(self._rng.normal(0.02, 0.02), -0.03, 0.07))

    # --- slices ---

    def _cut(self, layout: tuple[str, ...], nature: str, fault: Injected | None) -> bool:
        gpu: Gpu = recipes.one_of(self._rng, (A100, H100))
        taken = self._premises.take(gpu, 1)
        if taken is None:
            return False
        (seat,) = taken
        layouts = [(0.0, layout)]
        if nature == "placeable_mig" and self._waiting is not None and self._waiting.onset_s > 0:
            # What waits takes the free slices as soon as it waits.
            layouts.append((self._waiting.onset_s, (*layout, WAITING)))
        self._sliced.append(Sliced(gpu, seat, tuple(layouts), nature, fault))
        for number, profile in enumerate(layouts[-1][1]):
            start_s = 0.0 if number < len(layout) else layouts[-1][0]
            self._slice(gpu, slice_of(self._seed, seat, number, profile), profile, nature, start_s)
        return True

    def _slice(self, gpu: Gpu, seat: Seat, profile: str, nature: str, start_s: float) -> None:
        assert gpu.mig_sms is not None
        share = slices.PROFILES[profile].compute * gpu.mig_sms / gpu.sms
        model = recipes.one_of(self._rng, (models.VIT_L, models.RESNET_50))
        service = Service(
            gpu, model, fabric.best(gpu, 1), 1.0, 16, share=share, swing=float(self._rng.uniform(0.02, 0.08))
        )
        what = Serving(recipes.with_fill(service, float(self._rng.uniform(0.55, 0.8))), 1)
        tenant = recipes.one_of(self._rng, [each for each in self._tenants if each.signals is not None])
        number = len(self._workloads)
        self._workloads.append(
            Workload(
                tenant.name, f"{model.name}-slice-{number:03d}", gpu, what, (seat,), start_s, self._duration_s,
                self._duration_s, "healthy" if nature == "faulty" else nature, (), tenant.signals,
                contract="on_demand", allocation_id=f"slurm-{self._seed}-{number:05d}", bias=self._bias(),
                link_best="none",
            )
        )  # fmt: skip

    def _queue_of(self, asked: Asked) -> Injected:
        """The queue is the fleet's: one severity and one time for all GPUs with stranded slices."""
        drawn = asked.severity or SEVERITIES[asked.kind, ""]
        severity = float(self._rng.uniform(*drawn))
        onset_s = float(self._rng.uniform(0.25, 0.5)) * self._duration_s
        if asked.onset_h is not None:
            onset_s = float(self._rng.uniform(*asked.onset_h)) * 3600
        end_s = self._duration_s
        if asked.duration_h is not None:
            end_s = min(end_s, onset_s + float(self._rng.uniform(*asked.duration_h)) * 3600)
        return Injected(asked.kind, KINDS[asked.kind].variants[0], severity, onset_s, end_s)

    def _queue(self) -> tuple[tuple[float, str, int], ...]:
        if not any(each.fault for each in self._sliced):
            return ()
        assert self._waiting is not None
        found = []
        for number in range(math.ceil(self._duration_s / QUEUE_STEP_S)):
            at_s = number * QUEUE_STEP_S
            # Spread evenly, so that the share of time in which somebody waits is the severity.
            turn = math.floor((number + 1) * self._waiting.severity) > math.floor(number * self._waiting.severity)
            found.append((at_s, WAITING, int(self._rng.integers(1, 4)) if turn and self._waiting.holds(at_s) else 0))
        return tuple(found)


def _size(model: Transformer | Vision) -> str:
    return f"{model.parameters / 1e9:.0f}b" if model.parameters > 1e9 else f"{model.parameters / 1e6:.0f}m"
