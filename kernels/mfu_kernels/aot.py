"""Compile every kernel for every architecture without a GPU, and read from the machine code whether it is right.

`python -m mfu_kernels.aot [--arch A] [--json]`. A kernel is right if its matrix products use the architecture's matrix
instruction for their dtype, nothing is spilled from registers to memory, a program's shared memory is no more than the
architecture has (`configs.SHARED_BYTES`), and streams load 16 bytes at once. The Triton wheel brings the assembler and
the disassembler that this takes, those before 3.5 no linker for AMD's: TRITON_HIP_LLD_PATH names one. No driver is
needed. Exit code 1 where one is wrong, 2 for wrong usage.

What holds is a matter of Triton's version. `PYTHONPATH=DIR python -m mfu_kernels.aot`, after `pip install --no-deps
--target DIR triton==3.6.0`, looks at another one.
"""

# pyright: reportCallIssue=false, reportArgumentType=false

import argparse
import inspect
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mfu_kernels import clock, configs, gemm, simd, stream
from mfu_kernels.configs import Tile

_BIN: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS: Final = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "tf32": "fp32",
    "float32": "fp32",
    "int8": "i8",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
    "float8_e4m3fnuz": "fp8e4b8",
    "float8_e5m2fnuz": "fp8e5b16",
}
_EIGHT_BITS: Final = ("int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_WRITTEN_WIDE: Final = ("bfloat16", "float8_e4m3fn")


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel for one dtype on one architecture; `wide` where its product is written in float32, not in its own."""

    kernel: str
    dtype: str
    arch: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the machine code of a case says.

    `instruction` is the one that does the work, "" where the expected one is missing; `spills` are loads and stores of
    registers that found no place; `vector_bytes` the widest load of global memory, 0 where none is direct;
    `shared_bytes` the shared memory of a program: with more than `shared_limit_bytes`, which is what the architecture
    has for one, its launch fails. Where it is not `supported`, `reason` says what lacks.
    """

    kernel: str
    dtype: str
    arch: str
    supported: bool
    wide: bool = False
    reason: str = ""
    instruction: str = ""
    registers: int = 0
    spills: int = 0
    vector_bytes: int = 0
    shared_bytes: int = 0
    shared_limit_bytes: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the case is as it must be, or one that its architecture cannot have."""
        if not self.supported:
            return not self.error
        # Descriptors are moved by a unit of their own, products may stage narrow loads: only streams owe wide ones.
        wide = self.vector_bytes >= 16 or self.kernel not in ("copy", "triad", "read")
        fits = self.shared_bytes <= self.shared_limit_bytes
        return bool(self.instruction) and self.spills == 0 and fits and wide and not self.error


def cases(architectures: Sequence[str] = configs.ARCHITECTURES) -> list[Case]:
    """Every kernel, dtype and architecture, those that an architecture cannot have among them."""
    dtypes = tuple(dict.fromkeys(dtype for each in configs.DTYPES.values() for dtype in each))
    found = []
    for arch in architectures:
        for kernel in ("gemm", "gemm_descriptor", "gemm_persistent"):
            found += [Case(kernel, dtype, arch) for dtype in dtypes]
            # What is staged for writing takes room beside what is read; of 16 and of 8 bits one each tells it for all.
            found += [Case(kernel, dtype, arch, wide=True) for dtype in _WRITTEN_WIDE if kernel != "gemm"]
        found += [Case(kernel, "float32", arch) for kernel in ("copy", "triad", "read", "fma", "clock")]
    return found


def compile_case(case: Case) -> Compiled:
    """Compile one case and read its machine code."""
    began = time.perf_counter()
    case_is = partial(Compiled, case.kernel, case.dtype, case.arch, wide=case.wide)
    if reason := _lacks(case):
        return case_is(supported=False, reason=reason)
    limit = configs.SHARED_BYTES[case.arch]
    try:
        source, options = _source(case)
        compiled = triton.compile(source, target=_target(case.arch), options=options)
        listing, registers, spills = _listing(compiled, case.arch)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is the finding
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return case_is(supported=True, shared_limit_bytes=limit, error=said)
    return case_is(
        supported=True,
        instruction=_instruction(case, listing),
        registers=registers,
        spills=spills,
        vector_bytes=_vector_bytes(listing, case.arch),
        shared_bytes=int(compiled.metadata.shared),
        shared_limit_bytes=limit,
        seconds=round(time.perf_counter() - began, 2),
    )


# --- what is compiled ------------------------------------------------------------------------------------------------


def _target(arch: str) -> GPUTarget:
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


def _lacks(case: Case) -> str:
    if case.kernel.startswith("gemm"):
        return configs.lacks(case.kernel, case.arch, case.dtype, gemm.TRITON)
    if case.kernel == "clock" and not case.arch.startswith("sm_"):
        return "has no such counters"
    return configs.wanting(configs.ARCHITECTURE_SINCE.get(case.arch, (0, 0)), gemm.TRITON)


def _source(case: Case) -> tuple[Any, dict[str, Any]]:
    """The program and its options, as a launch on that architecture would have them."""
    if not case.kernel.startswith("gemm"):
        return _SIMPLE[case.kernel]()
    tile = configs.tile(case.kernel, case.arch, case.dtype, 4 if case.wide else None)
    assert tile is not None
    return _product(case, tile)


def _program(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], aligned: Sequence[str]) -> Any:
    names = kernel.arg_names
    if "constants" in inspect.signature(ASTSource).parameters:
        # Triton 3.2 has other names and another form for the same.
        from triton.backends.compiler import AttrsDescriptor  # pyright: ignore[reportAttributeAccessIssue]

        hints = AttrsDescriptor.from_hints({names.index(name): 16 for name in aligned})
        return ASTSource(fn=kernel, signature=dict(types), constants=dict(constants), attrs=hints)
    return ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # What a launch finds to be a multiple of 16 is compiled as such.
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def _product(case: Case, tile: Tile) -> tuple[Any, dict[str, Any]]:
    element = _POINTERS[case.dtype]
    itemsize = {"tf32": 4, "float32": 4}.get(case.dtype, 1 if case.dtype in _EIGHT_BITS else 2)
    is_integer = case.dtype == "int8"
    written = "i32" if is_integer else "fp32" if case.wide else element if itemsize > 1 else "bf16"
    constants: dict[str, Any] = {
        "block_m": tile.m,
        "block_n": tile.n,
        "block_k": tile.k_bytes // itemsize,
        "group_m": 8,
        "precision": "tf32" if case.dtype == "tf32" else "ieee",
        "accumulated": tl.int32 if is_integer else tl.float32,
        "upcast": False,
    }
    sizes = {"m": "i32", "n": "i32", "k": "i32"}
    options = gemm._options(tile)
    if case.kernel == "gemm":
        pointers = {"a_ptr": f"*{element}", "b_ptr": f"*{element}", "c_ptr": f"*{written}"}
        strides = ("stride_am", "stride_bn", "stride_cm")
        # Rows of A and C and columns of B lie together, as matrix units want them.
        ones = {"stride_ak": 1, "stride_bk": 1, "stride_cn": 1}
        types = {**pointers, **sizes, **dict.fromkeys(strides, "i32")}
        return _program(gemm.gemm_kernel, types, {**constants, **ones}, [*pointers, *sizes, *strides]), options
    if case.kernel == "gemm_descriptor":
        k = constants["block_k"]
        types = {
            "a_tiles": f"tensordesc<{element}[{tile.m}, {k}]>",
            "b_tiles": f"tensordesc<{element}[{tile.n}, {k}]>",
            "c_tiles": f"tensordesc<{written}[{tile.m}, {tile.n}]>",
            **sizes,
        }
        out = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "i32": tl.int32}[written]
        return _program(gemm.gemm_descriptor_kernel, types, {**constants, "written": out}, [*sizes]), options
    pointers = {"a_ptr": f"*{element}", "b_ptr": f"*{element}", "c_ptr": f"*{written}"}
    # Any number of programs gives the same code; this is an H100's.
    more = {**constants, "programs": 132}
    return _program(gemm.gemm_persistent_kernel, {**pointers, **sizes}, more, [*pointers, *sizes]), options


def _copy() -> tuple[Any, dict[str, Any]]:
    types = {"source_ptr": "*fp32", "out_ptr": "*fp32", "elements": "i64"}
    return _program(stream.copy_kernel, types, {"block": stream.BLOCK}, [*types]), _plain(stream.WARPS)


def _triad() -> tuple[Any, dict[str, Any]]:
    types = {"b_ptr": "*fp32", "c_ptr": "*fp32", "out_ptr": "*fp32", "scale": "fp32", "elements": "i64"}
    aligned = [name for name in types if name != "scale"]
    return _program(stream.triad_kernel, types, {"block": stream.BLOCK}, aligned), _plain(stream.WARPS)


def _read() -> tuple[Any, dict[str, Any]]:
    types = {"source_ptr": "*fp32", "out_ptr": "*fp32", "elements": "i64"}
    constants = {"block": stream.BLOCK, "programs": 1056}
    return _program(stream.read_kernel, types, constants, [*types]), _plain(stream.WARPS)


def _fma() -> tuple[Any, dict[str, Any]]:
    types = {"x_ptr": "*fp32", "out_ptr": "*fp32", "rounds": "i32"}
    constants = {"block": simd.BLOCK, "unrolled": simd.UNROLLED}
    return _program(simd.fma_kernel, types, constants, ["x_ptr", "out_ptr"]), _plain(simd.WARPS)


def _clock() -> tuple[Any, dict[str, Any]]:
    types = {"x_ptr": "*fp32", "cycles_ptr": "*i64", "ns_ptr": "*i64", "rounds": "i32"}
    constants = {"block": clock.BLOCK}
    return _program(clock.clock_kernel, types, constants, ["x_ptr", "cycles_ptr", "ns_ptr"]), _plain(clock.WARPS)


_SIMPLE: Final[Mapping[str, Callable[[], tuple[Any, dict[str, Any]]]]] = {
    "copy": _copy,
    "triad": _triad,
    "read": _read,
    "fma": _fma,
    "clock": _clock,
}


def _plain(warps: int) -> dict[str, Any]:
    return {"num_warps": warps, "enable_fp_fusion": True}


# --- what came out ---------------------------------------------------------------------------------------------------


def _listing(compiled: Any, arch: str) -> tuple[str, int, int]:
    """The disassembly, the registers of a thread, and the spilled ones' loads and stores."""
    if not arch.startswith("sm_"):
        text: str = compiled.asm["amdgcn"]
        return text, _number(r"\.vgpr_count:\s+(\d+)", text), _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        text = _run("nvdisasm", "-c", str(binary))
        used = _run("cuobjdump", "--dump-resource-usage", str(binary))
    return text, _number(r"REG:(\d+)", used), _spills(text)


def _spills(listing: str) -> int:
    """Loads and stores of local memory, which is where registers are spilled to.

    Zeros stored there are none: ptxas for sm_120 puts them down as an argument of a call that it has ready before each
    copy of a tile, for an address that is not in the program's own shared memory. What is read back counts.
    """
    return len(re.findall(r"\b(?:STL|LDL)\b(?![^;\n]*, RZ\b)", listing))


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_BIN / tool), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _expected(case: Case) -> str:
    """A pattern of the instruction that must do a case's work."""
    is_amd = case.arch.startswith("gfx")
    if case.kernel == "clock":
        # Both counters before the loop (a label, and a branch back to it), and both again after it.
        return r"SR_GLOBALTIMERLO.*SR_CLOCKLO.*(\.L_\w+):.*BRA `\(\1\).*SR_CLOCKLO.*SR_GLOBALTIMERLO"
    if case.kernel == "fma":
        return r"v_(?:pk_)?fma(?:c)?_f32\w*" if is_amd else r"FFMA2?(?:\.\w+)*"
    if case.kernel in ("copy", "triad", "read"):
        return r"(?:global|buffer)_load_dwordx4|(?:global|buffer)_load_b128" if is_amd else r"LDG\.E(?:\.\w+)*"
    if is_amd:
        return _AMD[case.dtype]
    if case.dtype == "float32":
        return r"FFMA2?(?:\.\w+)*"
    # The generation's matrix instruction, with the family of the operands in its first letter or its suffix.
    family = "I" if case.dtype == "int8" else "Q" if case.dtype in _EIGHT_BITS else "H"
    if case.arch == "sm_90":
        return rf"{family}GMMA(?:\.\w+)*"
    if case.arch == "sm_100":
        return rf"UTC{family}MMA(?:\.\w+)*"
    suffix = r"\S*TF32\S*" if case.dtype == "tf32" else r"(?:\.\w+)*"
    return rf"\b{family}MMA{suffix}"


_AMD: Final[Mapping[str, str]] = {
    "bfloat16": r"v_mfma_f32_\d+x\d+x\d+_?bf16\w*",
    "float16": r"v_mfma_f32_\d+x\d+x\d+_?f16\w*",
    "tf32": r"v_mfma_f32_\d+x\d+x\d+_?xf32\w*",
    "float32": r"v_mfma_f32_\d+x\d+x\d+_?f32\w*",
    "int8": r"v_mfma_i32_\d+x\d+x\d+_?i8\w*",
    # CDNA4 has one instruction for every eight-bit float, which says the formats in operands of its own.
    "float8_e4m3fn": r"v_mfma_f32_\d+x\d+x\d+_?(?:fp8_fp8|f8f6f4)\w*",
    "float8_e5m2": r"v_mfma_f32_\d+x\d+x\d+_?(?:bf8_bf8|f8f6f4)\w*",
    "float8_e4m3fnuz": r"v_mfma_f32_\d+x\d+x\d+_?fp8_fp8\w*",
    "float8_e5m2fnuz": r"v_mfma_f32_\d+x\d+x\d+_?bf8_bf8\w*",
}


def _instruction(case: Case, listing: str) -> str:
    found = re.search(_expected(case), listing, re.DOTALL)
    if case.kernel == "clock":
        return "SR_CLOCKLO" if found else ""
    return found.group(0) if found else ""


def _vector_bytes(listing: str, arch: str) -> int:
    """The widest load of global memory, in bytes."""
    if arch.startswith("sm_"):
        loads = re.findall(r"\bLDG(?:STS)?\.E(?:\.\w+)*", listing)
        return max((_width_of(load) for load in loads), default=0)
    loads = re.findall(r"\b(?:global|buffer)_load_(?:lds_)?(dwordx?\d?|b\d+|ushort|ubyte|short_d16\w*)", listing)
    return max((_AMD_WIDTHS.get(load, 2) for load in loads), default=0)


_AMD_WIDTHS: Final = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "b32": 4, "b64": 8, "b128": 16}


def _width_of(load: str) -> int:
    sizes = [int(part) // 8 for part in load.split(".") if part in ("64", "128", "256")]
    narrow = {"U8": 1, "S8": 1, "U16": 2, "S16": 2}
    return max(sizes, default=min((narrow[part] for part in load.split(".") if part in narrow), default=4))


# --- the command -----------------------------------------------------------------------------------------------------


def compile_all(architectures: Sequence[str] = configs.ARCHITECTURES, workers: int | None = None) -> list[Compiled]:
    """Every case of these architectures, compiled in as many processes as there are cores."""
    todo = cases(architectures)
    # Not forked: a process that was would inherit locks of the compiler's threads.
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or len(os.sched_getaffinity(0)), mp_context=spawning) as pool:
        return list(pool.map(compile_case, todo, chunksize=4))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mfu_kernels.aot", description="Compile all kernels for all GPUs.")
    parser.add_argument(
        "--arch", action="append", choices=configs.ARCHITECTURES, help="may be repeated; all unless given"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(arguments)
    found = compile_all(tuple(asked.arch or configs.ARCHITECTURES))
    if asked.json:
        print(json.dumps([{**asdict(each), "right": each.right} for each in found], indent=1))
    else:
        for each in found:
            print(_line(each))
    wrong = [each for each in found if not each.right]
    compiled = sum(each.supported for each in found)
    print(f"Triton {triton.__version__}: {compiled} compiled, {len(wrong)} wrong", file=sys.stderr)
    return 1 if wrong else 0


def _line(each: Compiled) -> str:
    name = f"{each.kernel:16} {each.dtype + (' to float32' if each.wide else ''):24} {each.arch:7}"
    if not each.supported:
        return f"--    {name} {each.reason}"
    if each.error:
        return f"WRONG {name} {each.error}"
    return (
        f"{'ok   ' if each.right else 'WRONG'} {name} {each.instruction or 'no matrix instruction':40} "
        f"{each.registers:4} registers {each.spills:4} spills {each.vector_bytes:3}-byte loads "
        f"{each.shared_bytes:7} of {each.shared_limit_bytes:6} bytes shared {each.seconds:6.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
