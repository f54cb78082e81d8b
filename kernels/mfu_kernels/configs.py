"""Which tile each kernel uses on which architecture: chosen ahead of time, so that nothing is searched at run time.

Every entry was compiled ahead of time for its architecture, spills no register and finds room in its shared memory
(`python -m mfu_kernels.aot`, which continuous integration runs with one version of Triton; which others were looked at
is in docs/how-to/calibrate.md). A tile is the same in all versions, though they lay out shared memory each in its own
way: what fits in one may not in another. What spills was left out: with four warps a 128 x 256 tile of fp32 sums does,
on every architecture before sm_100.
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
ARCHITECTURE_SINCE: Final[Mapping[str, tuple[int, int]]] = {"sm_100": (3, 3), "sm_120": (3, 3)}
"""The first Triton that compiles for an architecture: 3.2 ends the process at a product for sm_100."""
_DESCRIPTORS_SINCE: Final = (3, 4)
_SINCE: Final[Mapping[tuple[str, str], tuple[int, int]]] = {
    # Before, products run, but not on these matrix units: their operands are converted, or multiplied one by one.
    ("sm_100", "int8"): (3, 8),
    ("sm_120", "float8_e4m3fn"): (3, 5),
    ("sm_120", "float8_e5m2"): (3, 5),
    # Before, they do not compile (3.2) or spill hundreds of registers (3.3).
    ("gfx942", "tf32"): (3, 3),
    ("gfx950", "float8_e4m3fn"): (3, 4),
    ("gfx950", "float8_e5m2"): (3, 4),
}
"""The first Triton that gives an architecture's instruction for a dtype, as the listings of `aot` show."""
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
_WIDE_IN_TWO: Final = replace(_WIDE, stages=2)
# By descriptors 128 bytes of the inner dimension spill on sm_120 before Triton 3.7.
_SHALLOW: Final = Tile(128, 128, 64, warps=8, stages=3)
# fp32 without TF32 has no matrix instruction on NVIDIA's: each thread multiplies its own part of the tile. Sixteen
# elements of the inner dimension are the fewest that Triton before 3.8 takes.
_FMA: Final = Tile(128, 128, 64, warps=8, stages=3)
# 16 x 16 x 16 draws less power than the compiler's choice and clocks higher (AMD's maximum achievable FLOPS notes).
# With 128 bytes of the inner dimension this tile spills on gfx942, and on gfx950 before Triton 3.8, int8's always.
_CDNA: Final = Tile(256, 256, 64, warps=8, stages=2, matrix_instruction=16)
_CDNA4: Final = Tile(256, 256, 64, warps=8, stages=3, matrix_instruction=16)
# Its instruction for eight-bit floats takes 128 of them: half as wide a tile leaves room for these.
_CDNA4_FLOAT8: Final = Tile(256, 128, 128, warps=8, stages=2, matrix_instruction=16)
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
    "sm_120": _SHALLOW,
}
_DESCRIPTOR_WIDE_ELEMENT: Final[Mapping[str, Tile]] = {
    "sm_90": _WIDE_IN_TWO,
    "sm_100": _WIDE_IN_TWO,
    "sm_120": _SHALLOW,
}
"""Where an element of the output takes four bytes. A program that writes by a descriptor may hold the tile that it
writes beside those that it reads: a resident one always, others with Triton 3.6 to 3.8. `_WIDE` in three stages then
takes 278,552 bytes, and no launch finds room."""


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
        if architecture == "gfx950" and dtype in _FLOAT8:
            return _CDNA4_FLOAT8
        if architecture == "sm_100" and dtype == "tf32":
            # The wide one takes all registers there are, and with Triton 3.5 more.
            return _MIDDLE
        return _POINTER[architecture]
    wide = (written_bytes or (4 if dtype in ("tf32", "int8") else 2)) > 2
    return (_DESCRIPTOR_WIDE_ELEMENT if wide else _DESCRIPTOR).get(architecture)


def lacks(kernel: str, architecture: str, dtype: str, triton: tuple[int, int]) -> str:
    """Why that version of Triton (major, minor) does not give `kernel` there, "" where it does."""
    if tile(kernel, architecture, dtype) is None:
        return "has no instruction there"
    since = max(ARCHITECTURE_SINCE.get(architecture, (0, 0)), _SINCE.get((architecture, dtype), (0, 0)))
    if kernel != "gemm":
        since = max(since, _DESCRIPTORS_SINCE)
    return wanting(since, triton)


def wanting(since: tuple[int, int], triton: tuple[int, int]) -> str:
    """That `since` is wanted, where `triton` is an older version, else ""."""
    return f"wants Triton {since[0]}.{since[1]}, this is {triton[0]}.{triton[1]}" if triton < since else ""
