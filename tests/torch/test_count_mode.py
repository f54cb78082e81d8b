"""The counting mode as a guest: on any stack of modes, under compilation, beside errors, and gone afterwards."""

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mfu_sdk as mfu
from mfu_sdk.counting import traffic
from mfu_sdk.counting.dispatch import CountingMode

FLOPS = 2 * 2 * 3 * 5


def product() -> torch.Tensor:
    return torch.randn(2, 3) @ torch.randn(3, 5)


def test_several_times_and_nested_in_itself() -> None:
    """Each product inside counts once, however often the mode was entered."""
    mode = CountingMode()
    with mode:
        product()
        with mode:
            product()
        product()
    product()
    with mode:
        product()
    assert mode.result().model_flops == 4 * FLOPS
    mode.reset()
    assert mode.result().model_flops == 0
    assert mode.result().coverage == 1.0


def test_start_inside_and_stop_outside_of_anothers_mode() -> None:
    """A `with` of the user's that began before takes its own mode away, and ours stays on."""
    ours, theirs = CountingMode(), FlopCounterMode(display=False)
    with theirs:
        ours.start()
        product()
    product()
    ours.stop()
    product()
    assert (theirs.get_total_flops(), ours.result().model_flops) == (FLOPS, 2 * FLOPS)


def test_stop_inside_of_anothers_mode() -> None:
    """Stopping beneath a mode that was entered later leaves that one on."""
    ours, theirs = CountingMode(), FlopCounterMode(display=False)
    ours.start()
    with theirs:
        product()
        ours.stop()
        product()
    product()
    assert (theirs.get_total_flops(), ours.result().model_flops) == (2 * FLOPS, FLOPS)


def test_two_counting_modes() -> None:
    """Monitors of two models may overlap: each counts what ran while it was on."""
    first, second = CountingMode(), CountingMode()
    first.start()
    second.start()
    product()
    first.stop()
    product()
    second.stop()
    assert (first.result().model_flops, second.result().model_flops) == (FLOPS, 2 * FLOPS)


def test_stop_in_another_thread_leaves_it_transparent() -> None:
    """The other thread's stack is not ours to touch: until this one calls again, nothing is counted."""
    mode = CountingMode()
    mode.start()
    thread = threading.Thread(target=mode.stop)
    thread.start()
    thread.join(timeout=120)
    product()
    assert mode.result().model_flops == 0
    mode.start()
    product()
    mode.stop()
    assert mode.result().model_flops == FLOPS


def test_an_exception_of_the_models_passes_unchanged() -> None:
    """What was counted before it is kept, and nothing stays hooked."""

    class Failing(nn.Module):
        def forward(self) -> None:
            product()
            raise KeyError("the user's own")

    mode = CountingMode()
    with pytest.raises(KeyError, match="the user's own"), mode:
        Failing()()
    assert mode.result().model_flops == FLOPS
    assert mode.result().by_module == {"Failing": FLOPS}


def test_an_operators_own_error_passes_unchanged() -> None:
    """Shapes that do not fit raise what they raise without us."""
    with pytest.raises(RuntimeError, match="cannot be multiplied"), CountingMode():
        torch.randn(2, 3) @ torch.randn(4, 5)


def test_an_error_of_ours_does_not_reach_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under MFU_GUARD=log the operator runs once, its result is returned, and counting alone is lost."""

    def broken(_: object) -> int:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(traffic, "moved_bytes", broken)
    total = torch.zeros(2)
    monkeypatch.setenv("MFU_GUARD", "log")
    with CountingMode():
        total.add_(1)
    assert total.tolist() == [1.0, 1.0]
    monkeypatch.setenv("MFU_GUARD", "raise")
    with pytest.raises(ZeroDivisionError, match="ours"), CountingMode():
        total.add_(1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_code_stays_compiled_and_counts_alike() -> None:
    """First called under the mode, a function is compiled once, counts as eager does, and is not left eager."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 32)
    compiled = torch.compile(model)
    eager = mfu.count(lambda: model(x).sum().backward())
    first = mfu.count(lambda: compiled(x).sum().backward())
    second = mfu.count(lambda: compiled(x).sum().backward())
    compiled(x)
    assert dict(torch._dynamo.utils.counters["frames"]) == {"total": 1, "ok": 1}
    for count in (first, second):
        assert (count.forward_flops, count.backward_flops) == (eager.forward_flops, eager.backward_flops)
        # It did not run by itself: what it moves is that of a chain in one kernel, which has no dtype of its own.
        assert [op.dtype for op in count.ops if op.op == "aten::relu"] == ["none"]
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


def test_wrapper_tensors_count_what_they_run() -> None:
    """Ragged sequences of 3 and 5 tokens through a linear cost their 8 tokens."""
    ragged = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)
    count = mfu.count(nn.Linear(8, 4), ragged)
    assert (count.model_flops, count.uncounted) == (2 * 8 * 8 * 4, ())


def test_tensors_without_data() -> None:
    """Fake tensors count by their shapes, in their mode and outside of it."""
    fake = FakeTensorMode()
    with fake:
        assert mfu.count(product).model_flops == FLOPS
    a = fake.from_tensor(torch.randn(3, 4))
    assert mfu.count(lambda: a @ a.T).model_flops == 2 * 3 * 3 * 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_branch_that_ran() -> None:
    """Of torch.cond, the branch taken counts; flex attention, which runs a kernel of its own, is uncounted."""
    x = torch.randn(4, 4)

    def branch(one: bool) -> int:
        torch._dynamo.reset()
        return mfu.count(
            lambda: torch.cond(torch.tensor(one), lambda x: x @ x, lambda x: x @ x @ x, (x,))  # type: ignore[no-any-return]
        ).model_flops

    assert (branch(True), branch(False)) == (128, 256)  # noqa: FBT003 - a predicate's value


class Trace(TorchDispatchMode):
    """Somebody else's mode, which answers some operators itself."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.mm.default:
            return torch.zeros(args[0].shape[0], args[1].shape[1])
        return func(*args, **(kwargs or {}))


def test_what_another_mode_answers_never_ran() -> None:
    """Beneath the user's modes, ours counts what reaches the device."""
    with CountingMode() as mode, Trace():
        product()
    assert mode.result().model_flops == 0


def test_no_argument_is_kept() -> None:
    """What an operator was given is let go, whatever is remembered of its price."""
    mode = CountingMode()
    generator = torch.Generator()
    gone = weakref.ref(generator)
    with mode:
        torch.randn(4, generator=generator)
    del generator
    gc.collect()
    assert gone() is None


def test_collectives_count_bytes_handed_over(tmp_path: Path) -> None:
    """An all-reduce of 10 floats hands over 40 bytes; it is free of FLOPs and of coverage."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        x, gathered = torch.ones(10), torch.empty(10)

        def run() -> None:
            dist.all_reduce(x)
            dist.all_gather([gathered], x)

        count = mfu.count(run)
    finally:
        dist.destroy_process_group()
    assert count.comm_bytes == {"allreduce": 40, "allgather": 40}
    assert (count.model_flops, count.uncounted, count.coverage) == (0, (), 1.0)


SHARDED = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
import mfu_sdk as mfu

dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False))
whole = mfu.count(lambda: model(torch.ones(8, 16)).sum().backward())
mesh = init_device_mesh("cpu", (4,))
parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
shard = mfu.count(lambda: model(torch.ones(8, 16)).sum().backward())
print(whole.model_flops, shard.model_flops, len(shard.uncounted))
"""


def test_a_tensor_parallel_rank_counts_its_shard() -> None:
    """Of four ranks, each counts a quarter, not the whole."""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHARDED], capture_output=True, text=True, timeout=300, check=False
    )
    assert out.returncode == 0, out.stderr
    whole, shard, uncounted = map(int, out.stdout.split())
    assert (whole, shard, uncounted) == (2 * 8 * 512 * 5, 2 * 8 * 512 * 5 // 4, 0)


def test_importing_the_package_loads_no_torch() -> None:
    """Names resolve when they are first used."""
    code = "import sys, mfu_sdk, mfu_sdk.counting.formulas, mfu_sdk.counting.expect; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_without_torch_there_is_a_remedy() -> None:
    """Counting where torch is missing names what to install."""
    code = "import sys; sys.modules['torch'] = None\nimport mfu_sdk\nmfu_sdk.count"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "MissingDependencyError: torch is not installed" in out.stderr
