"""The code that measures a GPU, run on the processor: operands, checks, candidates, budgets."""

import ctypes
import importlib.util
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak import cuda, products
from mfu_sdk.peak.bench import Bench, Plan, run
from mfu_sdk.peak.buffers import DriverBuffers, OutOfRoomError, TorchBuffers, buffers_for
from mfu_sdk.peak.protocol import Sustain
from mfu_sdk.peak.shapes import Shape
from mfu_sdk.peak.stopwatch import HostStopwatch
from mfu_sdk.peak.streams import Memory, Stream

SMALL = Shape(256, 256, 256)


class Scarce(TorchBuffers):
    """Memory of so many bytes, on a processor."""

    def __init__(self, room: int) -> None:
        super().__init__("cpu")
        self.room = room
        self.most = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        self.most = max(self.most, size)
        if size > self.room:
            raise OutOfRoomError(f"no room for {size:,} bytes")
        return super().empty(shape, dtype)


def bench(room: int = 1 << 31, expected: dict[str, float] | None = None) -> Bench:
    return Bench(
        device="cpu",
        units=2,
        cache_bytes=1 << 18,
        free_bytes=lambda: 1 << 32,
        buffers=lambda: Scarce(room),
        stopwatch=HostStopwatch(),
        now=time.perf_counter,
        expected={} if expected is None else expected,
    )


def operands(dtype: str, shape: Shape = SMALL) -> products.Operands:
    return products.allocate(
        shape, products.NUMBERS[dtype], TorchBuffers("cpu"), 1 << 20, torch.Generator().manual_seed(1)
    )


DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vendors_product_is_right(dtype: str) -> None:
    """On every dtype that torch multiplies here, the library's product passes the check."""
    found = products.vendor(dtype, TorchBuffers("cpu"))
    assert found is not None
    products.check(operands(dtype), found[1], products.NUMBERS[dtype], found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("spoils", "words"),
    [
        (lambda a, b, out: None, "unwritten"),
        (lambda a, b, out: out[:-1].zero_(), "off by|unwritten"),
        (lambda a, b, out: out.zero_(), "off by"),
        (lambda a, b, out: out.copy_((a.float() @ b.float()) * 1.08 + 1), "off by"),
        (lambda a, b, out: out.copy_((a.float()[:, :-16] @ b.float()[:-16]).to(out.dtype)), "off by"),
    ],
    ids=["nothing written", "last row missing", "zeros", "8 % off", "inner size cut"],
)
def test_a_wrong_kernel_is_refused(dtype: str, spoils: Callable[..., object], words: str) -> None:
    """A kernel that writes nothing, too little or something else is no candidate."""
    with pytest.raises(CalibrationError, match=words):
        products.check(operands(dtype), spoils, products.NUMBERS[dtype], "wrong")


def test_operands_are_as_they_should_be() -> None:
    """Sets larger than four caches in all; normal deviates; eight-bit floats wide but not saturated; b by columns."""
    found = operands("bfloat16")
    assert sum(a.nbytes + b.nbytes for a, b in found.sets) >= 4 << 20
    a, b = found.sets[0]
    assert a.is_contiguous()
    assert b.T.is_contiguous()
    assert float(a.float().std()) == pytest.approx(1, abs=0.02)
    narrow = operands("float8_e4m3fn").sets[0][0].float()
    assert float((narrow.abs() == 448).float().mean()) < 1e-5
    assert float(narrow.abs().max()) > 448 / 2
    whole = operands("int8").sets[0][0]
    assert (int(whole.min()), int(whole.max())) == (-127, 127)


def test_operands_rotate() -> None:
    """Batches go on where the last one stopped, so that each call finds operands that others have pushed out."""
    found = operands("float32")
    seen: list[int] = []
    product = products.Product("k", found, lambda a, b, out: seen.append(a.data_ptr()), HostStopwatch())
    for _ in range(4):
        product.run(0.0)
    number = len(found.sets)
    assert number >= 2
    assert all(left != right for left, right in pairwise(seen))


class _Counting(HostStopwatch):
    """Times by the processor's own seconds, which neighbours don't lengthen; counts FLOPs by torch's own counter."""

    def __init__(self) -> None:
        super().__init__(time.process_time)
        self.rates: list[float] = []

    def time(self, call: Callable[[int], object], calls: int) -> tuple[float, float | None]:
        with FlopCounterMode(display=False) as counter:
            seconds, clock_mhz = super().time(call, calls)
        if counter.get_total_flops():
            self.rates.append(counter.get_total_flops() / seconds)
        return seconds, clock_mhz


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """One thread, whose processor seconds are the seconds of its work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_a_run_on_the_processor() -> None:
    """fp32, int8 and memory are measured within the budget, the user's random numbers and default dtype untouched."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heard: list[float] = []
    stopwatch = _Counting()
    measured = replace(bench(), stopwatch=stopwatch, now=time.process_time)
    began = time.process_time()
    run(measured, ("float32", "int8"), 1e-6, Plan("burst", 0.25), lambda *_: None)
    # What there must be of everything, whatever the budget.
    least_s = time.process_time() - began
    began = time.process_time()
    found = run(measured, ("float32", "int8"), 2.0, Plan("burst", 0.25), lambda _label, share: heard.append(share))
    assert time.process_time() - began < 2.0 + 3 * least_s
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert set(found.rates) == {"float32", "int8"}
    assert found.memory is not None
    for rate in (*found.rates.values(), found.memory):
        assert 0 < rate.low <= rate.flops_per_s <= rate.high
        assert rate.source.startswith("calibrated: burst, torch")
    # The rate is FLOPs, as torch's own counter has them, over the seconds of some batch.
    assert min(stopwatch.rates) <= found.rates["float32"].flops_per_s <= max(stopwatch.rates)
    assert heard == sorted(heard)
    assert 0 <= heard[0] < heard[-1] <= 1


class _Simulated:
    """A GPU's stopwatch in a time of its own: a spin before each batch, calls of 1.5 ms that differ by a tenth.

    As on an H200 (`benchmarks/results`), so that neither this machine's speed nor its neighbours are in it.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.counted_s = 0.0
        self._counts = False
        self._chance = random.Random(1)

    def now(self) -> float:
        return self.now_s

    def spend(self, seconds: float) -> None:
        self.now_s += seconds

    def time(self, call: Callable[[int], object], calls: int) -> tuple[float, float | None]:
        elapsed_s = calls * 1.5e-3 * self._chance.uniform(0.9, 1.1)
        self.spend(0.001 + elapsed_s)
        self.counted_s += elapsed_s * self._counts
        return elapsed_s, 1980.0

    @contextmanager
    def counting(self) -> Iterator[bool]:
        self._counts = True
        yield True
        self._counts = False


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("bfloat16", "float32"), ("bfloat16", "float32", "int8", "float16")])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_budget_of_a_gpu(dtypes: tuple[str, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What begins within the budget ends within it, batches beside which a clock is counted and the memory's too.

    With kernels of ours that are compiled already, which all take part, and with such as would have to be.
    """
    watch = _Simulated()
    names = ("triton gemm_persistent", "triton gemm_descriptor", "triton gemm")

    def ours(dtype: str, device: torch.device) -> list[tuple[str, products.Call]]:
        return [(name, lambda _a, _b, _out: None) for name in names]

    def streams(memory: Memory) -> Iterator[Stream]:
        for name in ("triton copy", "triton triad"):
            watch.spend(0.02)
            yield Stream(name, memory.size, lambda: None, watch)

    monkeypatch.setattr(products, "ours", ours)
    # A kernel is loaded, runs and is held against float64.
    monkeypatch.setattr(products, "check", lambda *_: watch.spend(0.03))
    monkeypatch.setattr(Memory, "ours", streams)
    monkeypatch.setattr(Memory, "read", lambda memory, _units: Stream("triton read", memory.size, lambda: None, watch))
    known = {f"{name.removeprefix('triton ')} {dtype}" for name in names for dtype in dtypes} | {"streams float32"}
    simulated = replace(
        bench(expected=dict.fromkeys(dtypes, 2e9)),
        stopwatch=watch,
        now=watch.now,
        compiled=frozenset(known if compiled else ()),
    )
    found = run(simulated, dtypes, 2.9, Plan("burst", 0.01), lambda *_: None)
    assert set(found.rates) == set(dtypes)
    batches = {1: 2, 2: 1, 4: 1}[len(dtypes)]
    assert watch.counted_s == pytest.approx(0.05 * batches * len(dtypes), rel=0.2)
    # Calls of a batch are as many as the last one's speed says, and those differ.
    assert watch.now_s <= 2.9 + 0.02
    assert watch.now_s > 2.0
    assert (f"{names[0].removeprefix('triton ')} bfloat16" in str(found.state["bfloat16_kernels"])) is compiled
    # Fewer where more kernels take part; an interval says how well a rate is known.
    least = {1: 8, 2: 2, 4: 1} if compiled else {1: 12, 2: 6, 4: 3}
    assert all(len(series.batches) >= least[len(dtypes)] for series in found.series.values())


def test_a_dtype_that_cannot_be_measured() -> None:
    """It costs its own rate, with the reason, and no other's; where it is all that was asked for, that is an error."""
    found = run(bench(), ("float32", "float8_e5m2"), 1.0, Plan("burst", 0.25), lambda *_: None)
    assert set(found.rates) == {"float32"}
    assert "no product of float8_e5m2" in str(found.state["float8_e5m2_missing"])
    with pytest.raises(CalibrationError, match="float8_e5m2"):
        run(bench(), ("float8_e5m2",), 0.5, Plan("burst", 0.25), lambda *_: None)


def test_smaller_operands_where_memory_is_short() -> None:
    """Products are halved until they fit; what does not fit at all is a clear error."""
    numbers, generator = products.NUMBERS["float32"], torch.Generator()
    found = products.allocate(Shape(4096, 4096, 4096), numbers, Scarce(4 << 20), 1 << 20, generator)
    assert found.shape == Shape(1024, 1024, 1024)
    with pytest.raises(OutOfRoomError, match="calibrate before the model is loaded"):
        products.allocate(Shape(4096, 4096, 4096), numbers, Scarce(1 << 10), 1 << 20, generator)
    short = run(bench(room=300 << 10), ("float32",), 1.0, Plan("burst", 0.25), lambda *_: None)
    assert short.memory is None
    assert "no room" in str(short.state["memory_missing"])


def test_sustained_groups() -> None:
    """The sustained tier reports windows of the winner, and says so."""
    plan = Plan("sustained", 0.25, sustained=Sustain(0.1, 3, 0.1, 0.05, 0.02))
    found = run(bench(), ("float32",), 1.0, plan, lambda *_: None)
    assert len(found.series["float32"].groups) == 3
    assert found.rates["float32"].source.startswith("calibrated: sustained, torch.mm")


def test_late_candidates_are_named() -> None:
    """What there was no time for is said, not dropped in silence."""
    found = run(bench(expected={"float32": 4e12}), ("float32",), 0.05, Plan("burst", 0.25), lambda *_: None)
    assert "torch.mm" in str(found.state["float32_not_tried"])


def test_fewer_sets_before_smaller_ones() -> None:
    """Where room is short there are fewer sets, two at the least, then smaller operands; below a size none."""
    numbers, generator = products.NUMBERS["float32"], torch.Generator()
    shape = Shape(1024, 1024, 1024)
    one, out = 2 * 4 << 20, 4 << 20

    def found(room_bytes: int, least_flops: float = 0.0) -> tuple[Shape, int]:
        made = products.allocate(
            shape, numbers, TorchBuffers("cpu"), 8 << 20, generator, room_bytes=room_bytes, least_flops=least_flops
        )
        return made.shape, len(made.sets)

    assert found(1 << 30) == (shape, 4)
    assert found(3 * one + out) == (shape, 3)
    assert found(2 * one + out) == (shape, 2)
    assert found(2 * one + out - 1)[0] == Shape(512, 512, 512)
    with pytest.raises(OutOfRoomError, match="nor for a smaller one"):
        found(2 * one + out - 1, least_flops=shape.flops / 2)


def test_a_failed_attempt_gives_back_what_it_took() -> None:
    """Of three allocations the third finds no room: both others go, and what was there before stays."""

    class Driver:
        """The two calls of libcuda that are used, over addresses that nobody touches."""

        def __init__(self) -> None:
            self.live: list[int] = []

        def cuMemAlloc_v2(self, address: Any, size: int) -> int:  # noqa: N802 - the driver's name
            if len(self.live) == 3:
                return 2
            address._obj.value = 4096 * (1 + sum(self.live) + size)
            self.live.append(address._obj.value)
            return 0

        def cuMemFree_v2(self, address: int) -> int:  # noqa: N802 - likewise
            self.live.remove(address)
            return 0

    driver = Driver()
    with DriverBuffers("cuda:0", driver) as memory:  # type: ignore[arg-type]  # it has what is called
        first = memory.allocate(1)

        def attempts() -> None:
            with memory.attempt():
                for size in (2, 3, 4):
                    memory.allocate(size)

        with pytest.raises(OutOfRoomError, match="no room for 4 bytes"):
            attempts()
        assert driver.live == [first]
    assert driver.live == []


def test_memory_past_torchs_allocator_needs_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes the driver's memory over through NumPy, which it does without otherwise: then its own is taken."""
    driver = SimpleNamespace(cuMemAlloc_v2=SimpleNamespace(), cuMemFree_v2=SimpleNamespace())
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    assert buffers_for("cuda:0").origin == "driver"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert buffers_for("cuda:0").origin == "torch"


@pytest.mark.parametrize(("alarm", "told"), [(0, []), (1, ["default", 1]), (2, ["default", 2])])
def test_the_users_alarm(alarm: int, told: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's alarm for synchronisations is off while a device is measured; one that is off is not touched."""
    said: list[object] = []
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: alarm)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", said.append)
    with cuda._guest("cuda:0"):
        assert said == told[:1]
    assert said == told


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton cannot compile, as in many containers, the driver's copy is measured and the reason is said."""

    def fails(*_: object) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    monkeypatch.setattr(Memory, "ours", fails)
    on = replace(bench(), compiled=frozenset({"streams float32"}))
    found = run(on, ("float32",), 1.0, Plan("burst", 0.25), lambda *_: None)
    assert found.memory is not None
    assert "torch copy" in found.memory.source
    assert "C compiler" in str(found.state["memory_refused"])
    assert "memory_missing" not in found.state


def test_only_the_winner() -> None:
    """A probe runs what won before, and nothing else; where that is gone, whatever stands first."""
    known = Plan("burst", 0.25, winners={"float32": "torch.mm 512×512×1024"}, only_winners=True)
    small = {"float32": 1e9}
    found = run(bench(expected=small), ("float32",), 0.3, known, lambda *_: None)
    assert found.series["float32"].winner == "torch.mm 512×512×1024"
    assert found.memory is None
    assert found.series["float32"].chosen_by == {}
    other = replace(known, winners={"float32": "triton gemm 1×1×1"})
    assert run(bench(expected=small), ("float32",), 0.3, other, lambda *_: None).rates


def test_too_little_time_between_two_steps() -> None:
    """Fewer than four batches are no rate: nothing is reported, and how much more time it takes is said."""
    plan = Plan("in situ", 0.25, only_winners=True)
    with pytest.raises(CalibrationError, match=r"give run\.calibrate more seconds"):
        run(bench(expected={"float32": 1e9}), ("float32",), 0.02, plan, lambda *_: None)


INTERPRETED = """
import sys, time
import torch
from mfu_sdk.peak import products
from mfu_sdk.peak.buffers import TorchBuffers
from mfu_sdk.peak.protocol import Schedule, measure
from mfu_sdk.peak.shapes import Shape
from mfu_sdk.peak.stopwatch import HostStopwatch
from mfu_sdk.peak.streams import Memory

generator = torch.Generator().manual_seed(1)
for dtype in ("float16", "bfloat16", "int8", "float8_e4m3fn"):
    numbers = products.NUMBERS[dtype]
    found = products.allocate(Shape(128, 128, 128), numbers, TorchBuffers("cpu"), 1 << 10, generator)
    names = []
    for name, call in products.ours(dtype, torch.device("cpu")):
        products.check(found, call, numbers, name)
        names.append(name)
    assert names == ["triton gemm_persistent", "triton gemm_descriptor", "triton gemm"], names
ours = products.ours(dtype, found.out.device)
# By the processor's own seconds: on a busy machine not all of them would have their turn within the budget.
watch = HostStopwatch(time.process_time)
candidates = [products.Product(name, found, call, watch) for name, call in ours]
theirs = products.vendor(dtype, TorchBuffers("cpu"))
candidates.append(products.Product(theirs[0], found, theirs[1], watch))
series = measure(candidates, Schedule(drop_s=0, least=2), 1.0, time.process_time)
assert set(series.chosen_by) == {each.name for each in candidates}, series
assert series.winner in series.chosen_by
memory = Memory(1 << 16, TorchBuffers("cpu"), generator, HostStopwatch())
assert [each.name for each in (memory.copy(), *memory.ours())] == ["torch copy", "triton copy", "triton triad"]
assert memory.read(1).run(0.0).rate > 0
print("right")
"""


def test_our_kernels_as_candidates() -> None:
    """In Triton's interpreter our kernels pass the same checks, and take part in the contest."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr[-2000:]
