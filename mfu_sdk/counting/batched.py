"""What counted work would take with more sequences in each call: its roofline once more, at another batch.

FLOPs and what is read and written of activations and caches grow with the batch; weights are read once, however many
sequences share them. That is what makes small batches wait for memory (Pope et al., "Efficiently Scaling Transformer
Inference", MLSys 2023, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mfu_sdk.counting.expect import roofline
from mfu_sdk.records import OpCost, Peaks

_MOST_KNOWN: Final = 16


class Batched(Protocol):
    """Work whose roofline at other batches is known."""

    def seconds(self, times: float) -> float | None:
        """Seconds with `times` as many sequences in each call; None where a rate is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Counted:
    """Counted operators on `devices` devices that each have `peaks`."""

    ops: tuple[OpCost, ...]
    peaks: Peaks
    devices: int = 1
    # A server says how many would fit once a second, and calls come by the hundred.
    _known: dict[float, float | None] = field(default_factory=dict, repr=False, compare=False)

    def seconds(self, times: float) -> float | None:
        """The roofline's seconds."""
        if times not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = roofline([_scaled(op, times) for op in self.ops], self.peaks)
            self._known[times] = None if found is None else found.total.value / self.devices
        return self._known[times]


@dataclass(frozen=True, slots=True)
class Between:
    """Work that lies between two pieces that were counted: `share` of the way from `near` to `far`."""

    near: Batched
    far: Batched
    share: float

    def seconds(self, times: float) -> float | None:
        """As far between theirs."""
        near_s, far_s = self.near.seconds(times), self.far.seconds(times)
        return None if near_s is None or far_s is None else near_s + self.share * (far_s - near_s)


def batched(ops: Sequence[OpCost], peaks: Peaks, devices: int) -> Counted | None:
    """`ops` at other batches; None where no operator shows its weights, which all would then be taken to grow."""
    return Counted(tuple(ops), peaks, devices) if any(op.weight_bytes for op in ops) else None


def _scaled(op: OpCost, times: float) -> OpCost:
    moved = op.weight_bytes + round((op.bytes_moved - op.weight_bytes) * times)
    return OpCost(op.op, op.dtype, round(op.flops * times), moved, op.calls, op.weight_bytes)
