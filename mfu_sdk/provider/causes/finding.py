"""What is found: a cause, what it costs, what shows it, how sure that is, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal, get_args

Cause = Literal[
    "under_batched_inference", "poor_topology", "mig_fragmentation", "scaling_inefficiency", "configuration_drift",
    "input_bound", "thermal_or_power", "straggler", "idle_allocation", "accounting", "unknown",
]  # fmt: skip
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

MATERIAL_LOSS: Final = 0.05
"""A cause is named from this counterfactual loss on: smaller ones are within what such figures can say."""
UNKNOWN_SHORTFALL: Final = 0.10
"""From this shortfall of the expected MFU on, one that nothing explains is told as `unknown`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule says of one workload. `shown` holds numbers with their units in the names, and words."""

    cause: Cause
    loss: float
    confidence: float
    shown: Mapping[str, float | str]
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause of one workload over a day or a range.

    `loss_share` is a share of its step time, for `idle_allocation` of its allocated hours, for `mig_fragmentation` of
    its GPU, for `accounting` of the FLOPs that it claims. `confidence` is in 0..1.
    """

    tenant: str
    workload: str | None
    run_id: str | None
    gpu_type: str | None
    world_size: int | None
    phase: str | None
    day: str
    cause: Cause
    loss_share: float
    confidence: float
    evidence: Mapping[str, float | str]
    remedy: str

    @property
    def series(self) -> str:
        """16 hexadecimal digits that stand for the workload and the cause, on whatever day."""
        key = (self.tenant, self.workload, self.gpu_type, self.world_size, self.cause)
        return blake2b(repr(key).encode(), digest_size=8).hexdigest()

    @property
    def id(self) -> str:
        """The series and the day."""
        return f"{self.series}-{self.day}"


def confidence(*supports: bool) -> float:
    """0.5 where a rule's own signals say it, and up to 0.95 with the share of further ones that are known and agree.

    What is not known does not agree, so that a lost signal never makes anything surer.
    """
    return 0.95 if not supports else 0.5 + 0.45 * sum(supports) / len(supports)
