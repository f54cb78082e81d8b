"""What only a driver can show: its words agree with torch's, and its counters with what ran."""

import time
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
import torch

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.device import resolve
from mfu_sdk.peak.nvml import Gpu, Nvml, Witness, counters, link, open_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
    pytest.mark.skipif(torch.version.hip is not None, reason="NVML is NVIDIA's"),
]

BUSY_S = 0.5


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    device = resolve("cuda")
    assert device.uuid is not None
    try:
        with open_gpu(device.uuid) as found:
            yield found
    except NvmlError as error:
        pytest.skip(str(error))


def work(call: Callable[[], object]) -> None:
    """Have the device busy with `call` for about half a second, without a pause between calls."""
    end = time.perf_counter() + BUSY_S
    while time.perf_counter() < end:
        for _ in range(20):
            call()
        torch.cuda.synchronize()


def test_agrees_with_torch(gpu: Gpu) -> None:
    """One device, described twice."""
    identity, state, properties = gpu.identity(), gpu.state(), torch.cuda.get_device_properties("cuda")
    assert identity.compute_capability == (properties.major, properties.minor)
    assert identity.memory_bytes is not None
    assert properties.total_memory <= identity.memory_bytes < 1.1 * properties.total_memory
    if identity.slice is not None:
        assert identity.slice.sm_count == properties.multi_processor_count
    assert state.sm_clock_mhz is not None
    assert identity.max_sm_clock_mhz is not None
    assert 0 < state.sm_clock_mhz <= identity.max_sm_clock_mhz


def test_the_witness_sees_tensor_pipes(gpu: Gpu) -> None:
    """Products keep the tensor pipes busy, additions of vectors do not, and both keep SMs busy."""
    witness = Witness.of(gpu)
    if witness is None:
        pytest.skip("this device has no GPM (before Hopper), or its driver keeps it back")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    witness.take()
    work(lambda: torch.mm(a, b, out=product))
    products = witness.take()
    # The device hands its counters on with a delay: a window that began at once had 0.15 of products in it on an H200.
    time.sleep(0.5)
    witness.take()
    work(lambda: torch.add(a, b, out=product))
    additions = witness.take()
    assert products is not None
    assert products.tensor is not None
    assert additions is not None
    assert additions.tensor is not None
    assert additions.sm is not None
    assert 0.2 < products.tensor <= 1.01
    assert additions.tensor < 0.05
    assert 0.2 < additions.sm <= 1.01


def test_counters_of_a_busy_interval(gpu: Gpu) -> None:
    """Power was drawn, and no limit held for more than the time that there was."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    before = counters(gpu)
    work(lambda: torch.mm(a, a))
    interval = counters(gpu).since(before)
    assert interval.duration_s >= BUSY_S
    assert all(0 <= share <= 1 for share in interval.held_shares.values())
    if before.energy_j is not None:
        assert interval.mean_power_w is not None
        assert 10 < interval.mean_power_w < 5000


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device has no links")
def test_links_are_the_same_both_ways() -> None:
    """Whatever connects two GPUs, it connects the second to the first."""
    uuids = [resolve(f"cuda:{index}").uuid for index in range(torch.cuda.device_count())]
    with Nvml.open() as session:
        found = [gpu for uuid in uuids if uuid is not None and (gpu := session.gpu(uuid)) is not None]
        assert len(found) == len(uuids)
        for a, b in combinations(found, 2):
            assert link(a, b) == link(b, a)
            assert link(a, b).path is not None
