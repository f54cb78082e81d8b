"""What was sent of a workload, and what each fault truly cost: the sums behind the truth file."""

from dataclasses import dataclass, field

from mfu_sdk.provider.simulate.faults import Injected


@dataclass(slots=True)
class Loss:
    """Seconds × devices with a fault in force, and what the same work would have taken without it."""

    with_s: float = 0.0
    without_s: float = 0.0

    @property
    def share(self) -> float:
        """The share of the time that is lost; 0 where the fault never met any work."""
        return max(0.0, 1 - self.without_s / self.with_s) if self.with_s > 0 else 0.0


@dataclass(slots=True)
class Account:
    """Sums of one workload. FLOPs are those that were sent, `true_` ones those that are so."""

    model_flops: float = 0.0
    available_flops: float = 0.0
    true_model_flops: float = 0.0
    true_available_flops: float = 0.0
    device_s: float = 0.0
    tokens: float = 0.0
    spans: int = 0
    run_ids: list[str] = field(default_factory=list)
    losses: dict[Injected, Loss] = field(default_factory=dict)

    def lost(self, fault: Injected, with_s: float, without_s: float) -> None:
        """Add seconds × devices to a fault's account."""
        loss = self.losses.setdefault(fault, Loss())
        loss.with_s += with_s
        loss.without_s += without_s
