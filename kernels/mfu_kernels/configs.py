"""Which tile each kernel uses on which architecture: chosen ahead of time, so that nothing is searched at run time.

Every entry was compiled ahead of time for its architecture, spills no register and finds room in its shared memory
(`python -m mfu_kernels.aot`, which continuous integration runs). What spills was left out: with four warps a 128 x 256
tile of fp32 sums does, on every architecture before sm_100.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

ARCHITECTURES: Final = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")

_AMPERE: Final = ("bfloat16", "float16", "tf32", "float32", "int8")
_FLOAT8: Final = ("float8_e4m3fn", "float8_e5m2")
DTYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "sm_80": _AMPERE,
    "sm_86": _AMPERE,
    "sm_89": (*_AMPERE, *_FLOAT8),
    "sm_90": (*_AMPERE, *_FLOAT8),
    "sm_100": (*_AMPERE, *_FLOAT8),
    "sm_120": (*_AMPERE, *_FLOAT8),
    # MI300's eight-bit formats have their zero and NaN elsewhere; the OCP ones are converted and run at fp16's rate.
    "gfx942": (*_AMPERE, "float8_e4m3fnuz", "float8_e5m2fnuz"),
    # CDNA4 dropped the TF32 instruction.
    "gfx950": ("bfloat16", "float16", "float32", "int8", *_FLOAT8),
}
"""The dtypes of matrix products that each architecture has an instruction for."""
SHARED_BYTES: Final[Mapping[str, int]] = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}
"""The most shared memory of one program (CUDA C++ Programming Guide, technical specifications by compute capability:
maximum amount of shared memory per thread block; AMD's CDNA 3 and 4 instruction set references: LDS of a workgroup)."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of the output, m x n elements, and how it is worked on.

    `k_bytes` is the inner size of an operand's tile in bytes, the same for every width of element. `matrix_instruction`
    is the side of AMD's matrix instruction, 0 leaving the choice to the compiler.
    """

    m: int
    n: int
    k_bytes: int
    warps: int
    stages: int
    matrix_instruction: int = 0


_MIDDLE: Final = Tile(128, 128, 128, warps=8, stages=3)
_WIDE: Final = Tile(128, 256, 128, warps=8, stages=3)
# fp32 without TF32 has no matrix instruction on NVIDIA's: each thread multiplies its own part of the tile. Sixteen
# elements of the inner dimension are the fewest that Triton before 3.7 takes.
_FMA: Final = Tile(128, 128, 64, warps=8, stages=3)
# 16 x 16 x 16 draws less power than the compiler's choice and clocks higher (AMD's maximum achievable FLOPS notes).
# With 128 bytes of the inner dimension this tile spills on gfx942, and int8's on gfx950; with 64, floats' on gfx950.
_CDNA: Final = Tile(256, 256, 64, warps=8, stages=2, matrix_instruction=16)
_CDNA4: Final = Tile(256, 256, 128, warps=8, stages=2, matrix_instruction=16)
_CDNA_WIDE_ELEMENT: Final = Tile(128, 128, 128, warps=8, stages=2, matrix_instruction=16)

_POINTER: Final[Mapping[str, Tile]] = {
    "sm_80": _MIDDLE,
    "sm_86": _MIDDLE,
    "sm_89": _MIDDLE,
    "sm_90": _WIDE,
    "sm_100": _WIDE,
    "sm_120": _MIDDLE,
    "gfx942": _CDNA,
    "gfx950": _CDNA4,
}
_DESCRIPTOR: Final[Mapping[str, Tile]] = {
    "sm_90": _WIDE,
    "sm_100": _WIDE,
    "sm_120": _MIDDLE,
}
_WIDE_STAGES: Final = 2
"""The most stages of a program that writes by a descriptor, where its output has four bytes an element. It holds the
tile that it writes beside those that it reads: a resident one always, others before Triton 3.7. With three, a launch
finds no room on any of these architectures."""


def tile(kernel: str, architecture: str, dtype: str, written_bytes: int | None = None) -> Tile | None:
    """The tile of `kernel` ("gemm", "gemm_descriptor", "gemm_persistent"), or None where it does not run.

    `written_bytes` is what an element of the output takes: 4 for fp32 products and int8 ones, else 2, unless given.
    None for an architecture or a dtype that it has no instruction for, and for descriptors where there is no tensor
    memory accelerator (before sm_90, and on AMD's).
    """
    if dtype not in DTYPES.get(architecture, ()):
        return None
    if dtype == "float32" and not architecture.startswith("gfx"):
        return _FMA if kernel == "gemm" else None
    if kernel == "gemm":
        if architecture.startswith("gfx") and dtype in ("float32", "tf32"):
            return _CDNA_WIDE_ELEMENT
        if architecture == "gfx950" and dtype == "int8":
            return _CDNA
        return _POINTER[architecture]
    found = _DESCRIPTOR.get(architecture)
    if found is None:
        return None
    wide = written_bytes or (4 if dtype in ("tf32", "int8") else 2)
    return replace(found, stages=min(found.stages, _WIDE_STAGES)) if wide > 2 else found
