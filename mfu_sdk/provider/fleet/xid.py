"""What the driver's Xids mean for the node: a handful of those that decide what is to be done, and their source.

Meanings: NVIDIA, "Xid Errors", the catalogue of messages (docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html,
docs.nvidia.com/deploy/xid-errors); that a node is to be drained first: NVIDIA, Health Validation, "Xid Checks"
(docs.nvidia.com/health-validation/reference/checks/xid.md). What to do is in our words; NVIDIA's catalogue decides.
"""

from dataclasses import dataclass
from typing import Final, Literal

Weight = Literal["node", "watch", "application"]
"""Whose it is: the node's, to be drained; the node's, to be watched; as a rule the program's that ran."""

SOURCE: Final = "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"


@dataclass(frozen=True, slots=True)
class Xid:
    """One code: what it is called, how it weighs, and what is to be done."""

    meaning: str
    weight: Weight
    remedy: str


_RMA: Final = "if it comes back, replace the GPU"

XIDS: Final[dict[int, Xid]] = {
    13: Xid("graphics engine exception", "application", "look at the program first; at the GPU if programs differ"),
    31: Xid("memory page fault", "application", "look at the program first; at the GPU if programs differ"),
    43: Xid("GPU stopped processing", "application", "look at the program; the GPU itself is healthy as a rule"),
    45: Xid("preemptive cleanup after an earlier error", "application", "look for the error before it"),
    48: Xid("double-bit ECC error", "node", f"drain the node and reset the GPU; {_RMA}"),
    63: Xid("row remapping recorded", "watch", "reset the GPU when its work ends, so that the row is remapped"),
    64: Xid("row remapping failed", "node", "drain the node, reset the GPU, and replace it if that does not help"),
    74: Xid("NVLink error", "node", f"drain the node, reset the GPU and check its NVLink connections; {_RMA}"),
    79: Xid(
        "GPU has fallen off the bus", "node", f"drain and reboot the node; check PCIe seating, power, cooling; {_RMA}"
    ),
    94: Xid("contained memory error", "watch", "only the program is lost: restart it, reset the GPU when it is free"),
    95: Xid("uncontained memory error", "node", f"drain the node and reset the GPU; {_RMA}"),
    119: Xid("GSP does not answer", "node", "drain the node, reset the GPU, and check driver and firmware versions"),
    120: Xid("GSP error", "node", "drain the node, reset the GPU, and check driver and firmware versions"),
}


def xid(code: int) -> Xid:
    """What a code means; one that is not listed here is to be looked up, and watched until then."""
    return XIDS.get(code) or Xid("not in this list", "watch", f"look it up: {SOURCE}")
