"""Which path a rank's collectives take, and the best one that its machine has, in the words of the wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.nvml import Gpu, Nvml, Path, link

Wire = Literal["none", "nvlink", "pcie", "system", "network"]
WIRES: Final[tuple[Wire, ...]] = ("none", "nvlink", "pcie", "system", "network")
"""From the best to the worst."""

# What crosses CPUs' own links or a NUMA node's bridges is the machine's; what one host bridge carries is still PCIe.
_AS_WIRE: Final[Mapping[Path, Wire]] = {
    "nvlink": "nvlink",
    "board": "pcie",
    "pcie-switch": "pcie",
    "pcie-switches": "pcie",
    "host-bridge": "pcie",
    # Slices have no access to one another: what passes between them passes the host.
    "same gpu": "pcie",
    "numa-node": "system",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Wiring:
    """The worst path from a rank's device to those of its peers, and the best between two devices of its machine."""

    link: Wire | None
    best: Wire | None


def wiring(device_id: str | None, visible: Sequence[str], *, ranks: int, here: int | None) -> Wiring:
    """The wiring of a rank on the device `device_id`, among `ranks` of which `here` are on this machine.

    `visible` are the devices that the process sees. Peers are not asked, for that would be a collective: where a
    machine has as many ranks as devices are visible, or as many as the driver has, those are theirs. One rank has no
    peers ("none"); ranks of several machines meet over the network whatever lies between. None for what is not known:
    a processor, a driver that does not answer.
    """
    link_: Wire | None = None
    if ranks == 1:
        link_ = "none"
    elif here is not None and here < ranks:
        link_ = "network"
    if device_id is None:
        return Wiring(link_, None)
    try:
        with Nvml.open() as session:
            return _of(session, device_id, visible, here, link_)
    except NvmlError:
        return Wiring(link_, None)


def _of(session: Nvml, device_id: str, visible: Sequence[str], here: int | None, known: Wire | None) -> Wiring:
    own, every = session.gpu(device_id), session.gpus()
    if own is None:
        return Wiring(known, None)
    # The own paths first: where one is the best there is, no other need be looked at.
    others = [each for each in every if _uuid(each) not in (_uuid(own), own.ask_gpu("nvmlDeviceGetUUID"))]
    pairs: Iterator[tuple[Gpu, Gpu]] = iter([*((own, each) for each in others), *combinations(others, 2)])
    best = _best(pairs)
    if known is None and here is not None:
        peers = _peers(session, own, every, visible, here)
        paths: list[Wire | None] = [_wire(own, peer) for peer in peers or ()]
        told: list[Wire] = [path for path in paths if path is not None]
        if told and len(told) == len(paths):
            known = max(told, key=WIRES.index)
    return Wiring(known, best)


def _peers(session: Nvml, own: Gpu, every: Sequence[Gpu], visible: Sequence[str], here: int) -> list[Gpu] | None:
    """The devices of the other ranks of this machine, None where it cannot be told which these are."""
    seen = [gpu for uuid in dict.fromkeys(visible) if (gpu := session.gpu(uuid)) is not None]
    for among in (seen, every):
        if len(among) == here and here > 1 and _uuid(own) in map(_uuid, among):
            return [gpu for gpu in among if _uuid(gpu) != _uuid(own)]
    return None


def _best(pairs: Iterable[tuple[Gpu, Gpu]]) -> Wire | None:
    best: Wire | None = None
    for a, b in pairs:
        found = _wire(a, b)
        if found is not None and (best is None or WIRES.index(found) < WIRES.index(best)):
            best = found
        if best == "nvlink":
            break
    return best


def _wire(a: Gpu, b: Gpu) -> Wire | None:
    path = link(a, b).path
    return None if path is None else _AS_WIRE.get(path)


def _uuid(gpu: Gpu) -> str | None:
    found: str | None = gpu.ask("nvmlDeviceGetUUID")
    return found
