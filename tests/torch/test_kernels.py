"""The kernels compute what their references say, at every edge, in the interpreter here and compiled on a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfu_kernels
from mfu_kernels import aot, configs, gemm, simd, stream
from mfu_kernels.configs import Tile

DTYPES = ("float32", "float16", "bfloat16")
NARROW = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "int8")
Ask = Callable[..., object]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")]
PATHS = {"PYTHONPATH": str(Path(mfu_kernels.__file__).parents[1])}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=GPU)])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """A function that puts one case to a `kernel_process.py` that lives as long as the module's tests."""
    interpret = {"TRITON_INTERPRET": "1" if request.param == "cpu" else "0"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kernel_process.py")), request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | PATHS | interpret,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def put(case: str, dtype: str, shape: tuple[int, ...] = (), seed: int = 0) -> object:
            stdin.write(json.dumps({"case": case, "dtype": dtype, "shape": shape, "seed": seed}) + "\n")
            stdin.flush()
            answer = stdout.readline()
            assert answer, "the kernel's process ended; its error is on standard error"
            found = json.loads(answer)
            if isinstance(found, dict):
                if why := found.get("absent"):
                    pytest.skip(why)
                pytest.fail(found["error"])
            return found

        yield put
        stdin.close()
        assert process.wait(timeout=120) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_product(ask: Ask, dtype: str) -> None:
    """A product of small whole numbers is exact: 1·7 + 2·11 = 29, and so on."""
    assert ask("known", dtype) == [[29, 32, 35, 38], [65, 72, 79, 86], [101, 112, 123, 134]]


@pytest.mark.parametrize("dtype", [*DTYPES, *NARROW])
@pytest.mark.parametrize("shape", [(1, 1, 1), (128, 64, 128), (129, 65, 127), (3, 200, 260), (300, 1, 2)])
def test_product(ask: Ask, dtype: str, shape: tuple[int, int, int]) -> None:
    """A product is within the bound of fp32 accumulation, whole tiles or ragged, and stays in its tensor."""
    assert ask("matmul", dtype, shape) <= 1


@settings(max_examples=15, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 140), st.integers(1, 140), st.integers(1, 140)),
    seed=st.integers(0, 2**31),
)
def test_any_product(ask: Ask, dtype: str, shape: tuple[int, int, int], seed: int) -> None:
    """No shape, dtype or seed breaks the bound, and doubling one operand doubles the product to the bit."""
    assert ask("matmul", dtype, shape, seed) <= 1
    assert ask("scaled", dtype, shape, seed) is True


@pytest.mark.parametrize("dtype", [*DTYPES, *NARROW])
@pytest.mark.parametrize("shape", [(128, 64, 128), (130, 80, 144), (16, 208, 272), (384, 32, 128)])
def test_product_by_descriptors(ask: Ask, dtype: str, shape: tuple[int, int, int]) -> None:
    """Tiles moved by descriptors of the host's or the device's give the product, ragged edges too."""
    assert ask("described", dtype, shape) <= 1


def test_more_than_one_group_of_tiles(ask: Ask) -> None:
    """Nine rows of tiles are one more than a group has: every tile is still written once."""
    assert ask("matmul", "float16", (8 * 128 + 1, 3, 129)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [1, 1023, 1024, 4099])
def test_stream(ask: Ask, dtype: str, elements: int) -> None:
    """Copy keeps every bit and triad is within three roundings, in whole blocks or ragged."""
    assert ask("copied_bits", dtype, (elements,)) is True
    assert ask("copy", dtype, (elements,)) == 0
    assert ask("triad", dtype, (elements,)) <= 1
    assert ask("read", dtype, (elements,)) <= 1


def test_chains_of_multiply_adds(ask: Ask) -> None:
    """2,048 elements, four chains of 32 steps each; and what they cost by hand."""
    assert ask("fma", "float32", (2048,)) <= 1
    assert simd.flops(2048, 2) == 2 * 4 * 32 * 2048


@pytest.mark.parametrize(
    ("case", "instruction"),
    [
        (aot.Case("gemm", "bfloat16", "sm_80"), "HMMA.16816.F32.BF16"),
        (aot.Case("gemm_persistent", "float8_e4m3fn", "sm_90"), "QGMMA.64x256x32.F32.E4M3.E4M3"),
        (aot.Case("gemm_descriptor", "bfloat16", "sm_100"), "UTCHMMA"),
        (aot.Case("gemm_persistent", "float8_e4m3fn", "sm_120", wide=True), "QMMA.16832.F32.E4M3.E4M3"),
        (aot.Case("gemm", "float32", "sm_90"), "FFMA"),
        (aot.Case("gemm", "bfloat16", "gfx942"), "v_mfma_f32_16x16x16_bf16"),
        (aot.Case("triad", "float32", "sm_90"), "LDG.E.128"),
    ],
)
def test_machine_code(case: aot.Case, instruction: str) -> None:
    """Without a GPU: the matrix instruction of the architecture, nothing spilled. `make kernels` looks at all."""
    found = aot.compile_case(case)
    assert (found.instruction, found.spills, found.error, found.right) == (instruction, 0, "", True)


def test_machine_code_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile too large for its warps spills, one in five stages finds no room, a format is emulated: all are found."""
    monkeypatch.setattr(configs, "tile", lambda *_: Tile(128, 256, 128, warps=4, stages=3))
    spilled = aot.compile_case(aot.Case("gemm", "bfloat16", "sm_80"))
    assert spilled.spills > 100
    assert not spilled.right
    monkeypatch.setattr(configs, "tile", lambda *_: Tile(64, 64, 64, warps=4, stages=2))
    emulated = aot.compile_case(aot.Case("gemm", "float8_e4m3fn", "gfx942"))
    assert (emulated.instruction, emulated.right) == ("", False)
    monkeypatch.setattr(configs, "tile", lambda *_: Tile(128, 128, 128, warps=8, stages=5))
    large = aot.compile_case(aot.Case("gemm", "bfloat16", "sm_86"))
    assert (large.spills, large.right) == (0, False)
    assert large.shared_bytes > large.shared_limit_bytes == 99 << 10
    # What an H200 refused: the tile that is written in fp32, 128 KiB, beside three stages of what is read, 48 KiB each.
    monkeypatch.setattr(configs, "tile", lambda *_: Tile(128, 256, 128, warps=8, stages=3))
    staged = aot.compile_case(aot.Case("gemm_persistent", "bfloat16", "sm_90", wide=True))
    assert (staged.spills, staged.error, staged.right) == (0, "", False)
    assert staged.shared_bytes >= (128 + 3 * 48) << 10
    assert staged.shared_limit_bytes == 232448
    broken = aot.compile_case(aot.Case("gemm", "float8_e4m3fn", "sm_80"))
    assert broken.error
    assert not broken.right


def test_counters_that_are_not_around_their_loop() -> None:
    """The clock is that of the work: in a listing where the last two are read before it, the instruction is missing."""
    case = aot.Case("clock", "float32", "sm_90")
    begin = "CS2R R4, SR_GLOBALTIMERLO ;\nCS2R R6, SR_CLOCKLO ;\n"
    loop = ".L_x_2:\nFFMA R0, R0, R1, R2 ;\n@P1 BRA `(.L_x_2) ;\n"
    end = "CS2R R8, SR_CLOCKLO ;\nCS2R R10, SR_GLOBALTIMERLO ;\n"
    assert aot._instruction(case, begin + loop + end) == "SR_CLOCKLO"
    assert aot._instruction(case, begin + end + loop) == ""


def test_what_an_architecture_lacks_is_not_compiled() -> None:
    """No descriptors before sm_90, no TF32 on gfx950, no eight-bit floats on sm_80."""
    for case in (
        aot.Case("gemm_descriptor", "bfloat16", "sm_80"),
        aot.Case("gemm", "tf32", "gfx950"),
        aot.Case("gemm", "float8_e5m2", "sm_80"),
        aot.Case("clock", "float32", "gfx942"),
    ):
        found = aot.compile_case(case)
        assert (found.supported, found.right) == (False, True)
        assert found.reason.startswith("has no ")


def test_what_a_version_of_triton_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, and the version that is wanted is said; what a version has, all later ones have."""
    wanted = [
        ("gemm", "sm_90", "bfloat16", (3, 2), ""),
        ("gemm_descriptor", "sm_90", "bfloat16", (3, 3), "wants Triton 3.4, this is 3.3"),
        ("gemm_persistent", "sm_90", "bfloat16", (3, 4), ""),
        ("gemm", "sm_100", "bfloat16", (3, 2), "wants Triton 3.3, this is 3.2"),
        ("gemm", "sm_100", "int8", (3, 7), "wants Triton 3.8, this is 3.7"),
        ("gemm", "sm_100", "int8", (3, 10), ""),
        ("gemm_descriptor", "sm_80", "bfloat16", (3, 2), "has no instruction there"),
    ]
    for kernel, arch, dtype, version, why in wanted:
        assert configs.lacks(kernel, arch, dtype, version) == why
    versions = [(3, minor) for minor in range(2, 12)]
    for case in aot.cases():
        had = [not configs.lacks(case.kernel, case.arch, case.dtype, version) for version in versions]
        assert had == sorted(had)
    monkeypatch.setattr(gemm, "TRITON", (3, 2))
    for case in (aot.Case("gemm", "bfloat16", "sm_100"), aot.Case("copy", "float32", "sm_120")):
        found = aot.compile_case(case)
        assert (found.supported, found.right, found.reason) == (False, True, "wants Triton 3.3, this is 3.2")


@pytest.mark.parametrize(("over", "right"), [(0, True), (1, False)])
def test_shared_memory_to_the_last_byte(over: int, right: bool) -> None:
    """A program that takes all there is can be launched; one byte more and none can."""
    limit = configs.SHARED_BYTES["sm_90"]
    found = aot.Compiled(
        "gemm", "bfloat16", "sm_90", supported=True, instruction="HGMMA", shared_bytes=limit + over,
        shared_limit_bytes=limit,
    )  # fmt: skip
    assert found.right is right
    assert f"{limit + over} of {limit} bytes shared" in " ".join(aot._line(found).split())


def test_what_counts_as_spilled() -> None:
    """Zeros put down for a call are none; what is put down and read back is, and zeros that are read back are."""
    zeros, put, read = "STL.64 [R1], RZ ;\n", "STL [R1+0x8], R0 ;\n", "@P0 LDL.LU R5, [R1+0xc] ;\n"
    assert aot._spills("MOV R0, RZ ;\n" + zeros + "CALL.ABS.NOINC R10 ;\n") == 0
    assert aot._spills(zeros + put + read) == 2
    assert aot._spills("STL [R1+0xc], RZ ;\n" + read) == 1


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), r"a \(2, 3\) @ b \(2, 3\): must be \(m, k\) @ \(k, n\)"),
        (torch.ones(2), torch.ones(2, 3), r"a \(2,\) @ b"),
        (torch.ones(2, 0), torch.ones(0, 2), "none of them 0"),
        (torch.ones(2, 2), torch.ones(2, 2).half(), r"a torch.float32, b torch.float16: must be the same"),
        (torch.ones(2, 2).double(), torch.ones(2, 2).double(), "one of torch.float32, torch.float16, torch.bfloat16"),
        (torch.ones(2, 2).long(), torch.ones(2, 2).long(), "torch.float8_e5m2fnuz, torch.int8"),
    ],
)
def test_operands_that_do_not_fit(a: torch.Tensor, b: torch.Tensor, match: str) -> None:
    """A product of operands that do not fit names them and the rule."""
    with pytest.raises(ValueError, match=match):
        gemm.matmul(a, b)


def test_output_that_does_not_fit() -> None:
    """An output of another shape, or of a dtype that is neither the operands' nor float32, is refused."""
    a = torch.ones(2, 2).half()
    with pytest.raises(ValueError, match=r"out \(2, 3\) torch.float16: must be \(2, 2\)"):
        gemm.matmul(a, a, torch.empty(2, 3).half())
    with pytest.raises(ValueError, match=r"in torch.float16 or torch.float32"):
        gemm.matmul(a, a, torch.empty(2, 2).bfloat16())


def test_streams_that_do_not_fit() -> None:
    """Buffers that differ, have another dtype, are empty or have gaps are refused."""
    x = torch.ones(8)
    with pytest.raises(ValueError, match="must have one shape and dtype"):
        stream.copy(x, torch.ones(9))
    with pytest.raises(ValueError, match="must have one shape and dtype"):
        stream.triad(x, x.half(), 1.0, x)
    with pytest.raises(ValueError, match=r"dtype torch\.int64: must be one of"):
        stream.copy(x.long(), x.long())
    with pytest.raises(ValueError, match="must be contiguous and not empty"):
        stream.copy(x[::2], torch.ones(4))
    with pytest.raises(ValueError, match="must be contiguous and not empty"):
        stream.copy(x[:0], x[:0])


def test_compiled_kernels_refuse_the_cpu() -> None:
    """Without the interpreter a tensor on the CPU is refused, and the message names the variable to set."""
    assert not gemm.INTERPRETED
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before mfu_kernels is imported"):
        gemm.matmul(torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        stream.copy(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="cpu and meta: must be on one device"):
        stream.copy(torch.ones(2), torch.ones(2, device="meta"))


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_import_without(missing: str) -> None:
    """Importing the package without torch or Triton is an ImportError that names the extra to install."""
    # None in sys.modules is how Python itself marks a module as not importable.
    code = f"import sys; sys.modules[{missing!r}] = None\ntry:\n import mfu_kernels\nexcept ImportError as e: print(e)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | PATHS,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert said.stdout.startswith(f"mfu_kernels needs {missing}, which is not installed: pip install 'mfu-sdk[torch]'")


LAUNCHED = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from mfu_kernels import gemm, simd, stream

def specialised(kernel, *values):
    # What a launch compiles for: the type of each argument, and what is known of its value.
    backend = make_backend(GPUTarget("cuda", 80, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    names = [each.name for each in kernel.params]
    constants = {name: 1 for name in names[len(values):]}
    _, found, _ = binder(*values, **constants)
    return dict(zip(names, found))

a = torch.empty(256, 512, dtype=torch.bfloat16)
b = torch.empty(384, 512, dtype=torch.bfloat16).T
out = torch.empty(256, 384, dtype=torch.bfloat16)
found = specialised(gemm.gemm_kernel, a, b, out, 256, 384, 512, *a.stride(), *b.stride(), *out.stride())
assert [found[name][0] for name in ("stride_ak", "stride_bk", "stride_cn")] == ["constexpr"] * 3, found
assert [found[name] for name in ("m", "n", "k", "stride_am", "stride_bn", "stride_cm")] == [("i32", "D")] * 6, found
assert [found[name] for name in ("a_ptr", "b_ptr", "c_ptr")] == [("*bf16", "D")] * 3, found
x = torch.empty(4096)
assert specialised(stream.copy_kernel, x, x, 4096)["elements"] == ("i32", "D")
# Beyond 8 GiB the number of elements is a 64-bit one.
assert specialised(stream.copy_kernel, x, x, 1 << 32)["elements"] == ("i64", "D")
assert specialised(simd.fma_kernel, x, x, 7)["rounds"] == ("i32", "")
print("right")
"""


def test_launches_are_what_was_compiled_ahead() -> None:
    """A launch knows that rows lie together and sizes are multiples of 16, as the code that CI looks at does."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED],
        env=os.environ | PATHS | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr[-3000:]


def test_no_launch_warns() -> None:
    """Triton warns of each kernel that leaves fused multiply-adds to its default: every launch says what it wants."""
    for module in (gemm, simd, stream):
        source = Path(module.__file__).read_text()
        launches = source.count("_kernel[(")
        assert launches > 0
        assert source.count("enable_fp_fusion") + source.count("**options") >= launches
