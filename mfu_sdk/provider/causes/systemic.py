"""The same cause over many workloads that share a place: a driver, an image, a node, a pool, a zone. Pure.

A place stands out where at least three workloads there have the cause, half of those that run there or more, and at
twice the rate of all others or more: a cause that is everywhere is no place's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import Cause, Finding

LEAST_WORKLOADS: Final = 3
LEAST_SHARE: Final = 0.5
LEAST_RATIO: Final = 2.0
_Name = tuple[str, str | None, str | None, int | None]


@dataclass(frozen=True, slots=True)
class Systemic:
    """A cause that `workloads` of the `of_workloads` at one place have; `elsewhere` is the share of the others.

    `kind` is driver, image, node, pool or zone, as far as spans told it; `tenants` are how many there are among them.
    """

    cause: Cause
    kind: str
    place: str
    workloads: int
    of_workloads: int
    elsewhere: float
    tenants: int


def systemic(evidence: Iterable[Evidence], findings: Sequence[Finding]) -> tuple[Systemic, ...]:
    """What stands out, the most workloads first."""
    at: dict[tuple[str, str], set[_Name]] = {}
    everywhere: set[_Name] = set()
    for e in evidence:
        name = e.tenant, e.workload, e.gpu_type, e.world_size
        everywhere.add(name)
        for kind, values in e.places.items():
            for value in values:
                at.setdefault((kind, value), set()).add(name)
    having: dict[Cause, set[_Name]] = {}
    for each in findings:
        having.setdefault(each.cause, set()).add((each.tenant, each.workload, each.gpu_type, each.world_size))
    found = []
    for cause, all_of_it in having.items():
        for (kind, place), there in at.items():
            hit = there & all_of_it
            others = everywhere - there
            elsewhere = len(others & all_of_it) / len(others) if others else 0.0
            share = len(hit) / len(there)
            if len(hit) >= LEAST_WORKLOADS and share >= LEAST_SHARE and others and share >= LEAST_RATIO * elsewhere:
                tenants = len({name[0] for name in hit})
                found.append(Systemic(cause, kind, place, len(hit), len(there), elsewhere, tenants))
    return tuple(sorted(found, key=lambda each: (-each.workloads, each.cause, each.kind, each.place)))
