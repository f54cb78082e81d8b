"""What torch's profiler says of a GPU's kernels, held against events around them."""

import pytest
import torch

from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.kernel_times import KernelTimes
from mfu_sdk.run.kernels import kind_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


def test_products_and_the_rest_as_events_time_them() -> None:
    """Twenty products and twenty sums, each kind between two events: the trace agrees to a tenth."""
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.half
    # Long beside the launch of the next one: what passes between two kernels is in the events' time.
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    # Large beside the cache, so that a sum lasts long beside the pause before the next one.
    b = torch.randn(1 << 27, device="cuda", dtype=dtype)
    total = torch.empty_like(b)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]

    def work() -> None:
        marks[0].record()
        for _ in range(20):
            torch.mm(a, a)
        marks[1].record()
        for _ in range(20):
            torch.add(b, b, out=total)
        marks[2].record()

    work()
    torch.cuda.synchronize()
    kernels = KernelTimes()
    kernels.start()
    work()
    kernels.stop()
    gathered = Gathered(ranks=1)
    ran = kernels.tell(gathered, 20 * 2 * 8192**3)
    assert gathered._worked["train"].products_s == pytest.approx(marks[0].elapsed_time(marks[1]) / 1e3, rel=0.1)
    assert gathered._worked["train"].streaming_s == pytest.approx(marks[1].elapsed_time(marks[2]) / 1e3, rel=0.1)
    # By names that a configuration can hold.
    assert {kind_of(name) for name in ran.kernels} == {"product", "streaming"}
    assert not any("kernel~" in name for name in ran.kernels)
