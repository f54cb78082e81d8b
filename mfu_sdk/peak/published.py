"""What vendors have published: FLOPs a clock by architecture, and what no device tells of its product.

A product is here for its reference clock, which the vendor's figures assume (H100 SXM: 1830 MHz for the tensor cores,
though NVML says 1980), or because its rates are below its chip's: GeForce halves what accumulates in fp32, a few cards
for data centres halve everything, export models are capped. Each entry has its source. All figures are dense; one
multiply-add is two FLOPs; fp16 and fp8 are rated with fp32 accumulation, as torch has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_FP8 = ("float8_e4m3fn", "float8_e5m2")
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
FP32_ACCUMULATED = frozenset({"float16", "bfloat16", "tf32", *_FP8})
TENSOR = FP32_ACCUMULATED | {"int8", "float4_e2m1fn_x2"}
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Architecture:
    """FLOPs a clock and unit by dtype at the chip's full rate, and what tells whether a product has that rate."""

    flops_per_clock: Mapping[str, int]
    source: str
    unit: Literal["SM", "CU"] = "SM"
    full_rate: Literal["always", "by brand", "if listed"] = "always"


@dataclass(frozen=True, slots=True)
class Product:
    """What no device of this product tells: reference clocks in MHz, and rates below its chip's.

    `tensor_mhz` is for matrix units, `vector_mhz` for fp32 and fp64 where it differs. `halved` and `withheld` name
    dtypes that run at half of the chip's rate, or at a rate that nobody has published. `published` holds FLOP/s of a
    product whose cap follows no clock, for all of its `units` SMs.
    """

    name: str
    source: str
    tensor_mhz: int | None = None
    vector_mhz: int | None = None
    halved: frozenset[str] = _NONE
    withheld: frozenset[str] = _NONE
    published: Mapping[str, float] = field(default_factory=dict)
    units: int | None = None


def _ampere_like(bf16: int, fp32: int, fp64: int, *, fp8: int = 0, int8: int = 0, fp4: int = 0) -> dict[str, int]:
    """The usual ratios since Ampere: fp16 as bf16, TF32 half of it. 0 leaves a dtype out."""
    table = {"bfloat16": bf16, "float16": bf16, "tf32": bf16 // 2, "float32": fp32, "float64": fp64, "int8": int8}
    table |= {"float4_e2m1fn_x2": fp4} | dict.fromkeys(_FP8, fp8)
    return {dtype: flops for dtype, flops in table.items() if flops}


ARCHITECTURES: Mapping[str, Architecture] = {
    # 8 tensor cores × 64 FMA. No bf16, no TF32.
    "sm_70": Architecture({"float16": 1024, "float32": 128, "float64": 64}, "NVIDIA V100 whitepaper WP-08608"),
    # As Volta. GTX 16 and T400 share sm_75 and have no tensor cores.
    "sm_75": Architecture(
        {"float16": 1024, "int8": 2048, "float32": 128, "float64": 4},
        "NVIDIA Turing whitepaper WP-09183",
        full_rate="if listed",
    ),
    # 4 tensor cores × 256 FMA; fp64 on the tensor cores.
    "sm_80": Architecture(_ampere_like(2048, 128, 128, int8=4096), "NVIDIA A100 whitepaper"),
    # 4 × 128 FMA (table 6: 512 FMA an SM).
    "sm_86": Architecture(_ampere_like(1024, 256, 4, int8=2048), "NVIDIA GA102 whitepaper v2", full_rate="by brand"),
    "sm_89": Architecture(
        _ampere_like(1024, 256, 4, fp8=2048, int8=2048), "NVIDIA Ada whitepaper v2", full_rate="by brand"
    ),
    # 4 × 512 FMA.
    "sm_90": Architecture(_ampere_like(4096, 256, 256, fp8=8192, int8=8192), "NVIDIA H100 whitepaper"),
    # 4 × 1024 FMA.
    "sm_100": Architecture(
        _ampere_like(8192, 256, 128, fp8=16384, int8=16384, fp4=32768), "NVIDIA Blackwell architecture brief"
    ),
    # Its int8, fp4 and fp64 are not those of sm_100, and NVIDIA's pages disagree on what they are: left out.
    "sm_103": Architecture(_ampere_like(8192, 256, 0, fp8=16384), "NVIDIA HGX B300 page"),
    "sm_120": Architecture(
        _ampere_like(1024, 256, 4, fp8=2048, int8=2048, fp4=4096),
        "NVIDIA RTX Blackwell whitepaper",
        full_rate="by brand",
    ),
    # fp32 and fp64 by matrix instructions, as rocBLAS has them.
    "gfx908": Architecture(
        {"float16": 1024, "bfloat16": 512, "int8": 1024, "float32": 256, "float64": 64},
        "AMD CDNA whitepaper",
        unit="CU",
    ),
    "gfx90a": Architecture(
        {"float16": 1024, "bfloat16": 1024, "int8": 1024, "float32": 256, "float64": 256},
        "AMD CDNA 2 whitepaper",
        unit="CU",
    ),
    "gfx942": Architecture(
        {"float16": 2048, "bfloat16": 2048, "tf32": 1024, "int8": 4096, "float32": 256, "float64": 256}
        | dict.fromkeys(_FNUZ, 4096),
        "AMD CDNA 3 whitepaper",
        unit="CU",
    ),
    "gfx950": Architecture(
        {"float16": 4096, "bfloat16": 4096, "int8": 8192, "float4_e2m1fn_x2": 16384, "float32": 256, "float64": 128}
        | dict.fromkeys(_FP8, 8192),
        "AMD CDNA 4 whitepaper",
        unit="CU",
    ),
}


def _published_rates(bf16: float, tf32: float, eight_bit: float, fp32: float, fp64: float) -> dict[str, float]:
    """FLOP/s by dtype from TFLOP/s."""
    table = {"bfloat16": bf16, "float16": bf16, "tf32": tf32, "float32": fp32, "float64": fp64, "int8": eight_bit}
    return {dtype: tflops * 1e12 for dtype, tflops in (table | dict.fromkeys(_FP8, eight_bit)).items()}


def _at(name: str, source: str, mhz: int, *, halved: frozenset[str] = _NONE) -> Product:
    """A product whose published figures all assume one clock."""
    return Product(name, source, mhz, mhz, halved=halved)


def _geforce(name: str, mhz: int, whitepaper: str) -> Product:
    return _at(name, f"NVIDIA {whitepaper} whitepaper", mhz, halved=FP32_ACCUMULATED)


def _cut(name: str) -> Product:
    """A product that is cut below its chip, for export or against mining, to rates that no source gives."""
    return Product(name, "no source", withheld=TENSOR | {"float32", "float64"})


_LISTED: tuple[tuple[str, Product], ...] = (
    # Volta and Turing.
    ("1db1 1db5 1df5", _at("Tesla V100 SXM2", "NVIDIA V100 whitepaper", 1530)),
    ("1db4 1db6", _at("Tesla V100 PCIe", "implied by 112 TFLOP/s fp16, NVIDIA V100 datasheet", 1367)),
    ("1df6", _at("Tesla V100S", "implied by 130 TFLOP/s fp16, NVIDIA V100 datasheet", 1587)),
    ("1e02", _at("NVIDIA TITAN RTX", "NVIDIA Turing whitepaper", 1770)),
    ("1e30 1e36 1e78", _at("Quadro RTX 6000", "NVIDIA Turing whitepaper", 1770)),
    ("1eb8", _at("Tesla T4", "NVIDIA T4 datasheet", 1590)),
    # Ampere.
    ("20b0 20b1 20b2 20b5 20f1", _at("NVIDIA A100", "NVIDIA A100 whitepaper", 1410)),
    ("20bd 20f3 20f5 20f6", _at("NVIDIA A800", "NVIDIA A800 datasheet", 1410)),
    ("20b7", _at("NVIDIA A30", "NVIDIA A30 datasheet", 1440)),
    ("2082 20c2", _cut("NVIDIA CMP 170HX")),
    ("2230", _at("NVIDIA RTX A6000", "NVIDIA GA102 whitepaper v2", 1800)),
    ("2235", _at("NVIDIA A40", "NVIDIA GA102 whitepaper v2", 1740)),
    ("2236", _at("NVIDIA A10", "NVIDIA A10 datasheet", 1695)),
    ("25b6", Product("NVIDIA A16 or A2", "NVIDIA A16 datasheet: 17.9 TFLOP/s bf16 for 4.5 fp32, the chip's full rate")),
    # 80 SMs. Whether its int8 is halved too, no source says that we have found.
    (
        "2237",
        Product(
            "NVIDIA A10G",
            "implied by 35 TFLOP/s fp32 and 70 bf16, NVIDIA A10G datasheet",
            1710,
            1710,
            halved=FP32_ACCUMULATED,
            withheld=frozenset({"int8"}),
        ),
    ),
    ("2203", _geforce("GeForce RTX 3090 Ti", 1860, "GA102")),
    ("2204", _geforce("GeForce RTX 3090", 1695, "GA102")),
    # Ada. The L40 and L20 halve all of their tensor rates, the L4 and L40S none.
    ("2684", _geforce("GeForce RTX 4090", 2520, "Ada")),
    ("2685", _geforce("GeForce RTX 4090 D", 2520, "Ada")),
    ("2704", _geforce("GeForce RTX 4080", 2505, "Ada")),
    ("26b1", _at("NVIDIA RTX 6000 Ada", "NVIDIA Ada whitepaper", 2505)),
    ("26b5", _at("NVIDIA L40", "NVIDIA L40 datasheet", 2490, halved=TENSOR)),
    ("26b9", _at("NVIDIA L40S", "NVIDIA L40S datasheet", 2520)),
    ("26ba", _at("NVIDIA L20", "implied by 119.5 TFLOP/s bf16, NVIDIA L20 datasheet", 2537, halved=TENSOR)),
    ("27b8", _at("NVIDIA L4", "NVIDIA L4 datasheet", 2040)),
    # Hopper.
    ("2330", Product("NVIDIA H100 SXM", "NVIDIA H100 whitepaper", 1830, 1980)),
    ("2331", Product("NVIDIA H100 PCIe", "NVIDIA H100 whitepaper", 1620, 1755)),
    ("2321", Product("NVIDIA H100 NVL", "implied by 835 TFLOP/s bf16, NVIDIA H100 datasheet", 1545, 1785)),
    ("2335", Product("NVIDIA H200", "NVIDIA H200 datasheet, clocks of H100 SXM", 1830, 1980)),
    ("233b", Product("NVIDIA H200 NVL", "implied by 835 TFLOP/s bf16, NVIDIA H200 datasheet", 1545, 1785)),
    ("2342 2348", Product("NVIDIA GH200", "NVIDIA GH200 datasheet, clocks of H100 SXM", 1830, 1980)),
    ("2324", Product("NVIDIA H800", "clocks of H100 SXM", 1830, 1980, withheld=frozenset({"float64"}))),
    ("2322", Product("NVIDIA H800 PCIe", "clocks of H100 PCIe", 1620, 1755, withheld=frozenset({"float64"}))),
    # 78 SMs × 4096 × 1980 MHz would be 633 TFLOP/s: the cap is not in the count of SMs, nor in any clock it reports.
    (
        "2329 232c",
        Product("NVIDIA H20", "NVIDIA H20 specification", units=78, published=_published_rates(148, 74, 296, 44, 1)),
    ),
    ("2328 230c 230e", _cut("NVIDIA H20B or H20 NVL16")),
    # Blackwell in the data centre: NVIDIA gives no clock. These follow from its figures and 148 (HGX) or 152 SMs; its
    # fp32 and fp64 figures, of two digits, imply different ones, so those are rated at NVML's maximum.
    ("2901", Product("NVIDIA B200", "implied by 2250 TFLOP/s bf16, NVIDIA HGX B200 page", 1856)),
    ("2941", Product("NVIDIA GB200", "implied by 2500 TFLOP/s bf16, NVIDIA GB200 NVL72 page", 2008)),
    ("3182", Product("NVIDIA B300", "implied by 2250 TFLOP/s bf16, NVIDIA HGX B300 page", 1856)),
    ("31c2 31c3", Product("NVIDIA GB300", "implied by 2500 TFLOP/s bf16, NVIDIA GB300 NVL72 page", 2008)),
    # Sources disagree on how many SMs a B100 has (132, 148), so its published peak stands without them.
    (
        "2920 29bc",
        Product("NVIDIA B100", "NVIDIA Blackwell brief", published=_published_rates(1750, 875, 3500, 60, 30)),
    ),
    # Blackwell with displays. The Server Edition's boost clock is not published.
    ("2b85", _geforce("GeForce RTX 5090", 2407, "RTX Blackwell")),
    ("2c02", _geforce("GeForce RTX 5080", 2617, "RTX Blackwell")),
    ("2bb1", _at("NVIDIA RTX PRO 6000 Blackwell", "NVIDIA RTX PRO Blackwell whitepaper", 2617)),
    ("2bb4", _at("NVIDIA RTX PRO 6000 Blackwell Max-Q", "NVIDIA RTX PRO Blackwell whitepaper", 2280)),
    ("2bb5", Product("NVIDIA RTX PRO 6000 Blackwell Server", "NVIDIA RTX PRO 6000 Blackwell Server datasheet")),
    ("2b87 2b8c", _cut("GeForce RTX 5090 D")),
    ("2bb2 2bb9 2bbc", _cut("NVIDIA RTX 6000D")),
)
PRODUCTS: Mapping[str, Product] = {
    f"10de:{device}": product for devices, product in _LISTED for device in devices.split()
}
"""By PCI vendor and device id, as NVML gives them and pci.ids names them. Not a list of what is supported: an
accelerator that is not in it is rated by its architecture, its SMs and NVML's maximum clock."""
