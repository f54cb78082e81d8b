"""How long collectives take on the path that they have: alpha-beta costs of rings and trees.

Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH" (2005), and Sanders,
Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009). Bytes follow nccl-tests'
bus convention (doc/PERFORMANCE.md): an all-reduce of S bytes over n ranks moves 2 (n − 1) / n · S on each rank's link.
Over several machines a collective is one in each machine and one between them, each GPU with a NIC of its own; the two
run at once, so the slower one counts.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from mfu_sdk.provider.simulate.silicon import Gpu

Link = Literal["nvlink", "pcie", "system", "network", "none"]
Collective = Literal["all_reduce", "all_gather"]

# What protocols leave of a line rate, and a hop's latency, as nccl-tests show on the machines of `silicon`.
_LEFT = 0.80
_NVLINK_HOP_S, _PCIE_HOP_S, _NETWORK_HOP_S = 2.5e-6, 6e-6, 12e-6
# Through the processors' memory: two copies share the root complex.
_SYSTEM_SHARE = 0.45


@dataclass(frozen=True, slots=True)
class Path:
    """What a job's collectives run over: inside a machine and, where it spans several, between them. Bytes/s a GPU."""

    inside: Link
    inside_bytes_per_s: float
    inside_hop_s: float
    ranks_inside: int
    machines: int = 1
    between_bytes_per_s: float = math.inf
    between_hop_s: float = 0.0

    @property
    def ranks(self) -> int:
        """How many ranks it joins."""
        return self.ranks_inside * self.machines

    @property
    def link(self) -> Link:
        """The name of the path that most of it takes."""
        if self.ranks == 1:
            return "none"
        return "network" if self.machines > 1 else self.inside

    def slower_between(self, factor: float) -> "Path":
        """The same with the NICs at `factor` of their rate: the slowest one paces a ring."""
        return replace(self, between_bytes_per_s=self.between_bytes_per_s * factor)

    def within_a_machine(self) -> "Path":
        """The same work on one machine's ranks."""
        return replace(self, machines=1, between_bytes_per_s=math.inf, between_hop_s=0.0)


def path(gpu: Gpu, ranks: int, inside: Link, machine_gpus: int = 8) -> Path:
    """The path of `ranks` ranks that fill machines of `machine_gpus`, by `inside` in each of them."""
    rate, hop = {
        "nvlink": (gpu.nvlink_bytes_per_s, _NVLINK_HOP_S),
        "pcie": (gpu.pcie_bytes_per_s, _PCIE_HOP_S),
        "system": (gpu.pcie_bytes_per_s * _SYSTEM_SHARE, 2 * _PCIE_HOP_S),
    }[inside]
    inside_ranks = min(ranks, machine_gpus)
    machines = math.ceil(ranks / machine_gpus)
    between = gpu.nic_bytes_per_s if machines > 1 else math.inf
    return Path(inside, rate, hop, inside_ranks, machines, between, _NETWORK_HOP_S if machines > 1 else 0.0)


def best(gpu: Gpu, ranks: int) -> Path:
    """The best path that this GPU type can have."""
    return path(gpu, ranks, "nvlink" if gpu.nvlink_gpus >= min(ranks, 8) else "pcie")


def bus_bytes(kind: Collective, size_bytes: float, ranks: int) -> float:
    """What moves on a rank's link."""
    return (2 if kind == "all_reduce" else 1) * (ranks - 1) / ranks * size_bytes


def pcie_bytes(kind: Collective, size_bytes: float, over: Path) -> float:
    """What each rank sends, and as much receives, over PCIe: to its peers where that is their path, and to its NIC."""
    passes = 2 if kind == "all_reduce" else 1
    inside = passes * (over.ranks_inside - 1) / over.ranks_inside * size_bytes
    between = passes * (over.machines - 1) / over.machines * size_bytes / over.ranks_inside
    return between + (inside if over.inside in ("pcie", "system") else 0.0)


def seconds(kind: Collective, size_bytes: float, over: Path) -> float:
    """How long one collective of `size_bytes` takes; an all-gather and a reduce-scatter take the same."""
    if over.ranks == 1:
        return 0.0
    passes = 2 if kind == "all_reduce" else 1
    inside_s = passes * (over.ranks_inside - 1) / over.ranks_inside * size_bytes / (over.inside_bytes_per_s * _LEFT)
    between_s = (
        passes * (over.machines - 1) / over.machines * size_bytes / over.ranks_inside
        / (over.between_bytes_per_s * _LEFT)
    )  # fmt: skip
    return max(inside_s, between_s) + passes * (
        _hops(over.ranks_inside) * over.inside_hop_s + _hops(over.machines) * over.between_hop_s
    )


def _hops(ranks: int) -> float:
    """Steps that latency is paid for: a ring has n − 1, a tree 2 log n; the library takes the fewer."""
    return min(ranks - 1, 2 * math.log2(ranks)) if ranks > 1 else 0.0
