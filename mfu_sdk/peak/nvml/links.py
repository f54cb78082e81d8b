"""What connects two GPUs of one machine, and a GPU to its host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.nvml.gpu import Gpu
from mfu_sdk.peak.nvml.session import INVALID_ARGUMENT, NOT_SUPPORTED, Nvml

Path = Literal[
    "same device", "same gpu", "nvlink", "board", "pcie-switch", "pcie-switches", "host-bridge", "numa-node", "system"
]
# nvmlGpuTopologyLevel_t.
_ANCESTORS: dict[int, Path] = {
    0: "board", 10: "pcie-switch", 20: "pcie-switches", 30: "host-bridge", 40: "numa-node", 50: "system",
}  # fmt: skip
# NVML_NVLINK_VERSION_*.
_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
# NVML_NVLINK_MAX_LINKS of the newest driver; older ones refuse what lies beyond theirs.
_MOST_LINKS = 36
_SWITCH = 2
# NVML_FI_DEV_NVLINK_GET_SPEED of a link, since Hopper; before, one speed that all active links have in common.
_LINK_SPEED, _COMMON_SPEED = 164, 90
# nvmlGpuP2PCapsIndex_t.
_P2P_READ, _P2P_WRITE, _P2P_NVLINK = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Link:
    """How data gets from one GPU to another; None for what NVML does not tell.

    `path`: "nvlink" where NVLink carries it, else what PCIe traffic has to cross, the shortest first: nothing beyond
    the board, one PCIe switch, several, the CPU's host bridge, a NUMA node's host bridges, the machine ("system"). Two
    slices of one GPU are on the "same gpu". `nvlinks` are the active links that lead from one to the other, through an
    NVSwitch if `switched`; 0 where there are none. `nvlink_bytes_per_s` is what they carry together in one direction,
    protocol included (a link of an H100 says 26.6 GB/s, of which 25 are data). `peer_access` says that each may read
    and write the other's memory.
    """

    path: Path | None
    nvlinks: int | None
    switched: bool | None = None
    nvlink_version: str | None = None
    nvlink_bytes_per_s: float | None = None
    peer_access: bool | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """A GPU's PCIe port now and at most. An idle GPU lowers its generation, never its number of lanes."""

    generation: int | None
    lanes: int | None
    max_generation: int | None
    max_lanes: int | None


@dataclass(frozen=True, slots=True)
class _End:
    """One NVLink of a GPU: its index, and the PCI address of what is at its other end; None for an NVSwitch."""

    index: int
    remote: tuple[int, int, int] | None
    switch: bool


def port(gpu: Gpu) -> Port:
    """The PCIe port of `gpu`, or the one that it is a slice of: four calls."""
    return Port(
        generation=gpu.ask_gpu("nvmlDeviceGetCurrPcieLinkGeneration"),
        lanes=gpu.ask_gpu("nvmlDeviceGetCurrPcieLinkWidth"),
        max_generation=gpu.ask_gpu("nvmlDeviceGetMaxPcieLinkGeneration"),
        max_lanes=gpu.ask_gpu("nvmlDeviceGetMaxPcieLinkWidth"),
    )


def link(a: Gpu, b: Gpu) -> Link:
    """What connects `a` and `b`: about 85 calls for two GPUs of eighteen NVLinks, so once, at a run's start.

    A MIG slice has no peers: NVIDIA's MIG user guide excludes peer-to-peer access, over NVLink and PCIe, for
    partitioned GPUs. What its GPU is connected to is then told by PCIe's hierarchy alone.
    """
    mine, others = a.ask("nvmlDeviceGetUUID"), b.ask("nvmlDeviceGetUUID")
    if mine is not None and mine == others:
        return Link("same device", None)
    if a.sliced or b.sliced:
        parents = (a.ask_gpu("nvmlDeviceGetUUID"), b.ask_gpu("nvmlDeviceGetUUID"))
        together = None not in parents and parents[0] == parents[1]
        return Link("same gpu" if together else _ancestor(a, b), 0, peer_access=False)
    read, write = _peers(a, b, _P2P_READ), _peers(a, b, _P2P_WRITE)
    access = None if read is None or write is None else read and write
    carrying, peers = _carrying(a, b), _peers(a, b, _P2P_NVLINK)
    if carrying is None and peers is None:
        # PCIe's hierarchy would be told, but not whether it is used.
        return Link(None, None, peer_access=access)
    # The driver's word counts more than the links found: they may be up while the switch between them is not.
    if peers is False or not (peers or carrying):
        return Link(_ancestor(a, b), 0, peer_access=access)
    if not carrying:
        # Which of the links it is cannot be told, as in a virtual machine that hides the other end's address.
        return Link("nvlink", None, peer_access=access)
    version = a.ask_gpu("nvmlDeviceGetNvLinkVersion", carrying[0].index)
    return Link(
        "nvlink", len(carrying), carrying[0].switch, _VERSIONS.get(version), _speed(a, carrying), peer_access=access
    )


def path_between(a: str, b: str) -> Path | None:
    """What connects the devices with the UUIDs `a` and `b`, asked in a session of its own; None if NVML cannot tell."""
    try:
        with Nvml.open() as session:
            first, second = session.gpu(a), session.gpu(b)
            return None if first is None or second is None else link(first, second).path
    except NvmlError:
        return None


def _ancestor(a: Gpu, b: Gpu) -> Path | None:
    return _ANCESTORS.get(a.ask_pair("nvmlDeviceGetTopologyCommonAncestor", b))


def _peers(a: Gpu, b: Gpu, capability: int) -> bool | None:
    status = a.ask_pair("nvmlDeviceGetP2PStatus", b, capability)
    return None if status is None else status == 0


def _carrying(a: Gpu, b: Gpu) -> list[_End] | None:
    """The NVLinks of `a` that lead to `b`, directly or through switches; None where it cannot be told."""
    mine, others, address = _ends(a), _ends(b), _address(b)
    if mine is None or others is None:
        return None
    direct = [end for end in mine if end.remote is not None and end.remote == address]
    # Every switch of a machine belongs to one fabric: the poorer of the two bounds what gets through.
    through = min(sum(end.switch for end in mine), sum(end.switch for end in others))
    return direct or [end for end in mine if end.switch][:through]


def _ends(gpu: Gpu) -> list[_End] | None:
    """The active NVLinks of a GPU; None where it does not say."""
    states = list(_states(gpu))
    if None in states:
        return None
    ends = []
    for index in (index for index, active in enumerate(states) if active):
        switch = gpu.ask_gpu("nvmlDeviceGetNvLinkRemoteDeviceType", index) == _SWITCH
        remote = None if switch else _at(gpu.ask_gpu("nvmlDeviceGetNvLinkRemotePciInfo", index))
        ends.append(_End(index, remote, switch))
    return ends


def _states(gpu: Gpu) -> Iterator[int | None]:
    for index in range(_MOST_LINKS):
        active, code = gpu.answer_gpu("nvmlDeviceGetNvLinkState", index)
        if code in (INVALID_ARGUMENT, NOT_SUPPORTED):
            # The end of the list, which is at its beginning for a GPU without NVLink.
            return
        yield active


def _address(gpu: Gpu) -> tuple[int, int, int] | None:
    return _at(gpu.ask_gpu("nvmlDeviceGetPciInfo"))


def _at(pci: Any) -> tuple[int, int, int] | None:
    return None if pci is None else (pci.domain, pci.bus, pci.device)


def _speed(gpu: Gpu, ends: list[_End]) -> float | None:
    """Bytes/s of these links together; NVML has units of 10⁶ bytes/s."""
    readings = gpu.fields(*((_LINK_SPEED, end.index) for end in ends), _COMMON_SPEED)
    common = readings.pop()
    speeds = [common if reading is None else reading for reading in readings]
    known = [reading.value for reading in speeds if reading is not None and reading.value > 0]
    return sum(known) * 1e6 if len(known) == len(ends) else None
