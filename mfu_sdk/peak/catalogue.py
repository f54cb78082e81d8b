"""GPU types by the names that people and drivers give them: chip, memory and links, for work that runs nowhere yet.

Nothing here is used for a device that is present: that one counts its own SMs and is measured. A slice (MIG) is no
type: it has as many SMs as its driver says.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.theory import Silicon, theoretical

GB: Final = 10**9


@dataclass(frozen=True, slots=True)
class Link:
    """What joins a GPU to its peers: bytes/s in one direction as its vendor rates it, and among how many GPUs."""

    name: str
    bytes_per_s: float
    gpus: int
    source: str


@dataclass(frozen=True, slots=True)
class GpuType:
    """A GPU as it is sold. `names` are further ones, the driver's first; the link to other nodes is the reference's.

    `network` is that of the vendor's own server (DGX, HGX or AMD's platform), one adapter for each GPU; None where
    there is no such server.
    """

    name: str
    names: tuple[str, ...]
    silicon: Silicon
    memory_bytes_per_s: float
    memory_bytes: int
    source: str
    link: Link
    network: Link | None = None


def _nvlink(generation: int, gigabytes: float, gpus: int = 8) -> Link:
    return Link(f"NVLink {generation}", gigabytes * GB, gpus, f"NVIDIA, NVLink {generation}: half of both directions'")


def _pcie(generation: int) -> Link:
    return Link(
        f"PCIe {generation}.0 x16", {3: 16, 4: 32, 5: 64}[generation] * GB, 8, "PCI-SIG, 16 lanes, one direction"
    )


def _network(gigabits: int, server: str) -> Link:
    return Link(f"{gigabits} Gb/s network", gigabits / 8 * GB, 1, f"{server} datasheet: one adapter for each GPU")


_A100, _H100, _B200 = _network(200, "DGX A100"), _network(400, "DGX H100"), _network(400, "DGX B200")
_NVL72, _B300, _AMD = _network(400, "GB200 NVL72"), _network(800, "DGX B300"), _network(400, "AMD Instinct platform")
_INFINITY: Final = Link("Infinity Fabric", 7 * 64 * GB, 8, "AMD CDNA 3 whitepaper: seven links of 64 GB/s a direction")


def _gpu(
    name: str, names: str, chip: tuple[str, int, str, str], memory: tuple[float, int], source: str, link: Link,
    network: Link | None = None,
) -> GpuType:  # fmt: skip
    architecture, units, product, brand = chip
    silicon = Silicon(architecture, units, None, f"10de:{product}", brand)
    listed = tuple(each.strip() for each in names.split("|"))
    return GpuType(name, listed, silicon, memory[0] * GB, memory[1] * GB, source, link, network)


def _amd(name: str, cus: int, mhz: int, architecture: str, memory: tuple[float, int], source: str) -> GpuType:
    silicon = Silicon(architecture, cus, mhz)
    return GpuType(name, (f"AMD Instinct {name}",), silicon, memory[0] * GB, memory[1] * GB, source, _INFINITY, _AMD)


_N, _RTX, _GEFORCE = "NVIDIA", "NVIDIA RTX", "GeForce"
# Name; the driver's and other names; architecture, SMs, PCI device, brand; GB/s and GB of memory; source; links.
TYPES: Final[tuple[GpuType, ...]] = (
    _gpu("V100 SXM2 16GB", "Tesla V100-SXM2-16GB", ("sm_70", 80, "1db1", "Tesla"), (900, 16), "V100 datasheet",
         _nvlink(2, 150)),
    _gpu("V100 SXM2 32GB", "Tesla V100-SXM2-32GB", ("sm_70", 80, "1db5", "Tesla"), (900, 32), "V100 datasheet",
         _nvlink(2, 150)),
    _gpu("V100 PCIe", "Tesla V100-PCIE-32GB|Tesla V100-PCIE-16GB", ("sm_70", 80, "1db6", "Tesla"), (900, 16),
         "V100 datasheet", _pcie(3)),
    _gpu("T4", "Tesla T4|NVIDIA T4", ("sm_75", 40, "1eb8", "Tesla"), (320, 16), "T4 datasheet", _pcie(3)),
    _gpu("A100 SXM 40GB", "NVIDIA A100-SXM4-40GB", ("sm_80", 108, "20b0", _N), (1555, 40), "A100 datasheet",
         _nvlink(3, 300), _A100),
    _gpu("A100 SXM 80GB", "NVIDIA A100-SXM4-80GB", ("sm_80", 108, "20b2", _N), (2039, 80), "A100 datasheet",
         _nvlink(3, 300), _A100),
    _gpu("A100 PCIe 40GB", "NVIDIA A100-PCIE-40GB", ("sm_80", 108, "20f1", _N), (1555, 40), "A100 datasheet",
         _pcie(4)),
    _gpu("A100 PCIe 80GB", "NVIDIA A100 80GB PCIe", ("sm_80", 108, "20b5", _N), (1935, 80), "A100 datasheet",
         _pcie(4)),
    _gpu("A800 SXM 80GB", "NVIDIA A800-SXM4-80GB", ("sm_80", 108, "20f3", _N), (2039, 80), "A800 datasheet",
         _nvlink(3, 200), _A100),
    _gpu("A30", "NVIDIA A30", ("sm_80", 56, "20b7", _N), (933, 24), "A30 datasheet", _pcie(4)),
    _gpu("A10", "NVIDIA A10", ("sm_86", 72, "2236", _N), (600, 24), "A10 datasheet", _pcie(4)),
    _gpu("A10G", "NVIDIA A10G", ("sm_86", 80, "2237", _N), (600, 24), "A10G datasheet", _pcie(4)),
    _gpu("A40", "NVIDIA A40", ("sm_86", 84, "2235", _N), (696, 48), "A40 datasheet", _pcie(4)),
    _gpu("RTX A6000", "NVIDIA RTX A6000", ("sm_86", 84, "2230", _RTX), (768, 48), "RTX A6000 datasheet", _pcie(4)),
    _gpu("RTX 3090", "NVIDIA GeForce RTX 3090", ("sm_86", 82, "2204", _GEFORCE), (936, 24), "GA102 whitepaper",
         _pcie(4)),
    _gpu("RTX 4090", "NVIDIA GeForce RTX 4090", ("sm_89", 128, "2684", _GEFORCE), (1008, 24), "Ada whitepaper",
         _pcie(4)),
    _gpu("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation", ("sm_89", 142, "26b1", _RTX), (960, 48),
         "RTX 6000 Ada datasheet", _pcie(4)),
    _gpu("L4", "NVIDIA L4", ("sm_89", 58, "27b8", _N), (300, 24), "L4 datasheet", _pcie(4)),
    _gpu("L40", "NVIDIA L40", ("sm_89", 142, "26b5", _N), (864, 48), "L40 datasheet", _pcie(4)),
    _gpu("L40S", "NVIDIA L40S", ("sm_89", 142, "26b9", _N), (864, 48), "L40S datasheet", _pcie(4)),
    _gpu("H100 SXM", "NVIDIA H100 80GB HBM3|H100 SXM5", ("sm_90", 132, "2330", _N), (3350, 80), "H100 datasheet",
         _nvlink(4, 450), _H100),
    _gpu("H100 PCIe", "NVIDIA H100 PCIe|H100 80GB HBM2e", ("sm_90", 114, "2331", _N), (2000, 80), "H100 datasheet",
         _pcie(5)),
    _gpu("H100 NVL", "NVIDIA H100 NVL|H100 NVL 94GB", ("sm_90", 132, "2321", _N), (3900, 94), "H100 datasheet",
         _pcie(5)),
    _gpu("H800 SXM", "NVIDIA H800|H800 SXM5", ("sm_90", 132, "2324", _N), (3350, 80), "H800 specification",
         _nvlink(4, 200), _H100),
    _gpu("H20", "NVIDIA H20", ("sm_90", 78, "2329", _N), (4000, 96), "H20 specification", _nvlink(4, 450), _H100),
    _gpu("H200 SXM", "NVIDIA H200|H200 141GB", ("sm_90", 132, "2335", _N), (4800, 141), "H200 datasheet",
         _nvlink(4, 450), _H100),
    _gpu("H200 NVL", "NVIDIA H200 NVL", ("sm_90", 132, "233b", _N), (4800, 141), "H200 datasheet", _pcie(5)),
    _gpu("GH200 96GB", "NVIDIA GH200 480GB|GH200 120GB", ("sm_90", 132, "2342", _N), (4000, 96), "GH200 datasheet",
         _nvlink(4, 450), _H100),
    _gpu("GH200 144GB", "NVIDIA GH200 144G HBM3e", ("sm_90", 132, "2348", _N), (4900, 144), "GH200 datasheet",
         _nvlink(4, 450), _H100),
    _gpu("B200", "NVIDIA B200|B200 SXM", ("sm_100", 148, "2901", _N), (7700, 180), "HGX B200 page", _nvlink(5, 900),
         _B200),
    _gpu("GB200", "NVIDIA GB200|GB200 NVL72", ("sm_100", 152, "2941", _N), (8000, 186), "GB200 NVL72 page",
         _nvlink(5, 900, 72), _NVL72),
    _gpu("B300", "NVIDIA B300 SXM6 AC|B300 SXM", ("sm_103", 148, "3182", _N), (8000, 270), "HGX B300 page",
         _nvlink(5, 900), _B300),
    _gpu("GB300", "NVIDIA GB300|GB300 NVL72", ("sm_103", 152, "31c2", _N), (8000, 279), "GB300 NVL72 page",
         _nvlink(5, 900, 72), _B300),
    _gpu("RTX 5090", "NVIDIA GeForce RTX 5090", ("sm_120", 170, "2b85", _GEFORCE), (1792, 32),
         "RTX Blackwell whitepaper", _pcie(5)),
    _amd("MI300X", 304, 2100, "gfx942", (5300, 192), "MI300X datasheet"),
    _amd("MI325X", 304, 2100, "gfx942", (6000, 256), "MI325X datasheet"),
    _amd("MI350X", 256, 2200, "gfx950", (8000, 288), "MI350X datasheet"),
    _amd("MI355X", 256, 2400, "gfx950", (8000, 288), "MI355X datasheet"),
)  # fmt: skip


def find(name: str) -> tuple[GpuType, ...]:
    """The types that `name` may mean: the one whose name it is, else all that have each of its words in theirs.

    Case, hyphens and the maker's name do not matter. Several are returned only where they have the same chip, so that
    they differ in memory and links ("A100"). Raises `ConfigurationError`, naming candidates, for a name that none has
    or that types with different chips share ("H100").
    """
    wanted = _words(name)
    exact = [each for each in TYPES if any(_words(known) == wanted for known in (each.name, *each.names))]
    found = exact or [each for each in TYPES if wanted and wanted <= _all_words(each)]
    if not found:
        near = difflib.get_close_matches(name.lower(), [each.name.lower() for each in TYPES], 4, 0.5)
        near = [each.name for each in TYPES if each.name.lower() in near] or [each.name for each in TYPES]
        raise ConfigurationError(f"device={name!r}: no GPU type has this name; one of {', '.join(near)}, or give Peaks")
    if len({_chip(each) for each in found}) > 1:
        raise ConfigurationError(
            f"device={name!r}: may be any of {', '.join(each.name for each in found)}, which differ; name one of them"
        )
    return tuple(found)


_SAID_BY_ALL: Final = frozenset({"nvidia", "amd", "instinct", "tesla", "geforce", "gpu"})


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9.]+", name.lower())) - _SAID_BY_ALL


def _all_words(each: GpuType) -> frozenset[str]:
    return frozenset().union(*(_words(known) for known in (each.name, *each.names)))


def _chip(each: GpuType) -> tuple[tuple[str, float], ...]:
    """What tells two chips apart here: every rate that they have on paper."""
    return tuple(sorted((dtype, rate.flops_per_s) for dtype, rate in theoretical(each.silicon).headline.items()))
