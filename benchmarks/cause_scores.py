"""How good a list of named causes is, given the truth of a simulated fleet. Pure, and tested by hand-made cases.

- A claim hits a fault of the same workload (of the same machine, where the fault is a machine's) and the same cause, if
  the time it is about overlaps the fault's, with an hour's tolerance on either side.
- Precision: claims that hit a material fault, over those and the wrong ones. One that hits nothing is wrong. Neither
  are claims that hit a fault too small to matter, or another name for the same fault ("also" in the truth): they are
  counted apart. `unknown` accuses nobody of anything, and is counted apart too.
- Recall: material faults that some claim of their cause hits; money-weighted by what they cost their owner.
- Told: material faults whose tenant's SDK, or the provider's exporter, tells the signal that such a fault shows in
  (`NEEDS`, by what the fault is and by no rule). Recall among them stands beside recall among all.
- Missed: each material fault that was not found, and why as far as the truth knows (`Missed.why`).
- Delay: from the onset to the first moment at which the claim could be made, in hours.
- Accused: healthy workloads with at least one named cause.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

UNKNOWN = "unknown"
TOLERANCE_S = 3600.0
MATERIAL = 0.05

NEEDS: Mapping[str, frozenset[str]] = {
    "poor_topology": frozenset({"components", "links"}),
    "scaling_inefficiency": frozenset({"components", "links"}),
    "straggler": frozenset({"components"}),
    "thermal_or_power": frozenset({"clock"}),
    "configuration_drift": frozenset({"identity", "components", "clock"}),
    "under_batched_inference": frozenset({"load"}),
}
"""What a fault of each kind, or of one variant, shows in, of what some tenants' SDKs do not tell.

Where a step's time goes and over which links; clocks; which configuration ran, and that neither waits nor clocks
slowed it; a server's load. Waits for data, FLOPs and time every SDK tells, and so that a device takes no steps; slices
and abandoned devices are in the provider's books; an exporter tells clocks.
"""

EXPORTED: frozenset[str] = frozenset({"poor_topology slow_link", "poor_topology pcie_only"})
"""Variants that show in what an exporter tells, whatever the SDK does: exchanges inside a machine over PCIe, in the
bytes that cross it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A cause that was named, about [since_s, until_s); `known_s` is when it first was. Unix seconds.

    `workload` may be None where `host` says whose fault it is.
    """

    tenant: str | None
    workload: str | None
    cause: str
    since_s: float
    until_s: float
    known_s: float
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One cause's. Ratios are None where there is nothing to divide by."""

    cause: str
    material: int
    found: int
    right: int
    wrong: int
    immaterial: int
    also: int
    cost: float
    found_cost: float
    delays_h: tuple[float, ...]
    told: int
    found_told: int

    @property
    def precision(self) -> float | None:
        """Right claims over right and wrong ones."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> float | None:
        """Material faults that were found."""
        return self.found / self.material if self.material else None

    @property
    def recall_told(self) -> float | None:
        """The same of those whose signals are told."""
        return self.found_told / self.told if self.told else None

    @property
    def money_recall(self) -> float | None:
        """The share of what material faults cost that was found."""
        return self.found_cost / self.cost if self.cost else None

    @property
    def median_delay_h(self) -> float | None:
        """Of the faults that were found."""
        return median(self.delays_h) if self.delays_h else None


@dataclass(frozen=True, slots=True)
class Missed:
    """A material fault that nobody named. `held` is the share of the judged time in which it held.

    `why`: "signal absent" (its tenant does not tell what it shows in), "taken for another" (another cause was named),
    "diluted" (over the judged time its loss is below what is material), "small" (it loses less than twice that while it
    holds), else "not decided".
    """

    cause: str
    variant: str
    severity: float
    loss_share: float
    held: float
    why: str
    workload: str | None
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """A fleet's: by cause, healthy workloads and those that were accused, by nature, and what was taken for what."""

    causes: Mapping[str, Score]
    healthy: int
    accused: tuple[tuple[str, str, str, str], ...]
    unknown_healthy: int
    unknown_faulty: int
    confusions: Mapping[tuple[str, str], int]
    missed: tuple[Missed, ...] = ()


def score(truth: Mapping[str, Any], claims: Iterable[Claim], tolerance_s: float = TOLERANCE_S) -> Scores:
    """The scores of `claims` against a truth file's content."""
    faults = [_Fault.of(entry) for entry in truth["faults"]]
    workloads = {(each["tenant"], each["workload"]): each for each in truth["workloads"]}
    claims = tuple(claims)
    named = [claim for claim in claims if claim.cause != UNKNOWN]
    unknown = {(claim.tenant, claim.workload) for claim in claims if claim.cause == UNKNOWN}
    right, wrong, immaterial, also = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    confusions: Counter[tuple[str, str]] = Counter()
    found: dict[_Fault, list[float]] = {}
    accused: set[tuple[str, str, str, str]] = set()
    for claim in named:
        meant = [fault for fault in faults if fault.same_place(claim, workloads)]
        held = [fault for fault in meant if fault.overlaps(claim, tolerance_s)]
        hit = [fault for fault in held if fault.cause == claim.cause]
        if any(fault.material for fault in hit):
            right[claim.cause] += 1
        elif hit:
            immaterial[claim.cause] += 1
        elif any(claim.cause in fault.also for fault in held):
            also[claim.cause] += 1
        else:
            wrong[claim.cause] += 1
            confusions.update((fault.cause, claim.cause) for fault in meant)
            own = workloads.get((claim.tenant, claim.workload))
            if own is not None and own["healthy"] and not meant:
                accused.add((own["tenant"], own["workload"], own["nature"], claim.cause))
        for fault in hit:
            found.setdefault(fault, []).append(max(0.0, claim.known_s - fault.onset_s) / 3600)
    names = sorted({fault.cause for fault in faults} | {claim.cause for claim in named})
    healthy = {key for key, each in workloads.items() if each["healthy"]}
    return Scores(
        {
            name: _score(name, faults, found, (right[name], wrong[name], immaterial[name], also[name]))
            for name in names
        },
        len(healthy),
        tuple(sorted(accused)),
        len(unknown & healthy),
        len(unknown - healthy),
        confusions,
        tuple(
            _missed(fault, claims, workloads, truth) for fault in faults if fault.material and fault not in found
        ),
    )  # fmt: skip


def total(scores: Sequence[Scores]) -> dict[str, Score]:
    """Several fleets' scores by cause, as sums: no ratio is averaged."""
    names = sorted({name for each in scores for name in each.causes})
    added = {}
    for name in names:
        parts = [each.causes[name] for each in scores if name in each.causes]
        added[name] = Score(
            cause=name,
            material=sum(part.material for part in parts),
            found=sum(part.found for part in parts),
            right=sum(part.right for part in parts),
            wrong=sum(part.wrong for part in parts),
            immaterial=sum(part.immaterial for part in parts),
            also=sum(part.also for part in parts),
            cost=sum(part.cost for part in parts),
            found_cost=sum(part.found_cost for part in parts),
            delays_h=tuple(delay for part in parts for delay in part.delays_h),
            told=sum(part.told for part in parts),
            found_told=sum(part.found_told for part in parts),
        )
    return added


@dataclass(frozen=True, slots=True)
class _Fault:
    tenant: str | None
    workload: str | None
    hosts: tuple[str, ...]
    cause: str
    also: tuple[str, ...]
    material: bool
    cost: float
    onset_s: float
    end_s: float
    variant: str
    severity: float
    loss_share: float
    signals: frozenset[str] | None
    dcgm: bool

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "_Fault":
        return cls(
            entry["tenant"], entry["workload"], tuple(entry["hosts"]), entry["cause"], tuple(entry["also"]),
            entry["material"], entry["money"]["cost"], _unix_s(entry["onset"]), _unix_s(entry["end"]),
            entry.get("variant", ""), entry.get("severity", 0.0), entry.get("loss_share", 0.0),
            None if entry.get("signals") is None else frozenset(entry["signals"]), bool(entry.get("dcgm")),
        )  # fmt: skip

    @property
    def told(self) -> bool:
        """Whether what such a fault shows in is told; without a word of signals all of them are."""
        if self.signals is None:
            return True
        if self.dcgm and f"{self.cause} {self.variant}" in EXPORTED:
            return True
        needed = NEEDS.get(f"{self.cause} {self.variant}", NEEDS.get(self.cause, frozenset()))
        return needed <= self.signals | ({"clock"} if self.dcgm else set())

    def same_place(self, claim: Claim, workloads: Mapping[tuple[Any, Any], Mapping[str, Any]]) -> bool:
        """Whether the claim is about this fault's workload, or its machine where it has no workload."""
        if self.workload is not None:
            return (claim.tenant, claim.workload) == (self.tenant, self.workload)
        if claim.cause != self.cause:
            return False
        if claim.host is not None:
            return claim.host in self.hosts
        own = workloads.get((claim.tenant, claim.workload))
        return own is not None and not set(own["hosts"]).isdisjoint(self.hosts)

    def overlaps(self, claim: Claim, tolerance_s: float) -> bool:
        """Whether the claim is about a time in which the fault held."""
        return claim.since_s < self.end_s + tolerance_s and claim.until_s > self.onset_s - tolerance_s


def _score(
    name: str, faults: Sequence[_Fault], found: Mapping[_Fault, Sequence[float]], counts: tuple[int, int, int, int]
) -> Score:
    material = [fault for fault in faults if fault.cause == name and fault.material]
    hit = [fault for fault in material if fault in found]
    told = [fault for fault in material if fault.told]
    return Score(
        name,
        len(material),
        len(hit),
        *counts,
        sum(fault.cost for fault in material),
        sum(fault.cost for fault in hit),
        tuple(min(found[fault]) for fault in hit),
        len(told),
        sum(fault in found for fault in told),
    )


def _missed(
    fault: _Fault,
    claims: Sequence[Claim],
    workloads: Mapping[tuple[Any, Any], Mapping[str, Any]],
    truth: Mapping[str, Any],
) -> Missed:
    said = sorted({claim.cause for claim in claims if fault.same_place(claim, workloads)})
    whole_s = _unix_s(truth["until"]) - _unix_s(truth["since"]) if "until" in truth else fault.end_s - fault.onset_s
    held = min(1.0, (fault.end_s - fault.onset_s) / whole_s) if whole_s > 0 else 1.0
    others = set(said) - {UNKNOWN, *fault.also}
    why = (
        "signal absent" if not fault.told
        else "taken for another" if others
        else "diluted" if fault.loss_share * held < MATERIAL
        else "small" if fault.loss_share < 2 * MATERIAL
        else "not decided"
    )  # fmt: skip
    return Missed(fault.cause, fault.variant, fault.severity, fault.loss_share, held, why, fault.workload, tuple(said))


def _unix_s(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
