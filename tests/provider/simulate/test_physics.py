"""The physics of a simulated fleet obeys the laws that real machines obey."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.provider.simulate import fabric, kernels, models, pcie, power, recipes, serving, slices, training
from mfu_sdk.provider.simulate.faults import KINDS, Injected, applied
from mfu_sdk.provider.simulate.kernels import Kernels
from mfu_sdk.provider.simulate.noise import Jitter, generator
from mfu_sdk.provider.simulate.power import Cooling
from mfu_sdk.provider.simulate.serving import Service
from mfu_sdk.provider.simulate.silicon import A100, GPUS, H100
from mfu_sdk.provider.simulate.training import Job, Noise

SIZES = st.floats(1e3, 1e10)
RANKS = (2, 4, 8, 16, 32, 64)


def job(ranks: int = 8) -> Job:
    return Job(H100, models.LLAMA_8B, fabric.best(H100, ranks), 1, 2048, sharded=True)


def noise(of: Job, steps: int = 200) -> Noise:
    return Noise.draw(Jitter(generator(1, "test"), 0.01), steps, of.ranks, 0.0, 0.1)


def test_flops_by_hand() -> None:
    """A token of a model costs 6 FLOPs a weight and 12 · layers · width for each pair that its mask lets through."""
    model = models.GPT_125M
    weights = 12 * (768 * (3 * 768 + 768 + 2 * 3072)) + 50257 * 768
    assert model.parameters == weights
    assert model.training_flops(1024) == pytest.approx(6 * weights + 12 * 12 * 768 * 1025 / 2)
    work = kernels.training(H100, model, 4, 1024, 1, Kernels())
    assert work.model_flops == pytest.approx(4 * 1024 * model.training_flops(1024))


def test_bus_bytes_by_hand() -> None:
    """An all-reduce of 8 GB over 8 ranks moves 14 GB on each link, an all-gather 7."""
    assert fabric.bus_bytes("all_reduce", 8e9, 8) == pytest.approx(14e9)
    assert fabric.bus_bytes("all_gather", 8e9, 8) == pytest.approx(7e9)
    one = fabric.path(H100, 1, "nvlink")
    assert (fabric.seconds("all_reduce", 8e9, one), one.link) == (0.0, "none")


def test_pcie_bytes_by_hand() -> None:
    """NVLink leaves the bus alone; without it a ring's 7/8 cross, and of two machines a GPU's share goes to its NIC."""
    weights = 2 * models.LLAMA_8B.parameters
    one, two = job(8), job(16)
    assert training.steady(one).traffic.pcie_bytes == 0
    # Gathered twice and scattered once, over eight ranks.
    slow = applied(one, Injected("poor_topology", "slow_link", 0.5, 0, 1))
    assert training.steady(slow).traffic.pcie_bytes == pytest.approx(3 * 7 / 8 * weights)
    assert training.steady(two).traffic.pcie_bytes == pytest.approx(3 / 2 * weights / 8)
    assert fabric.pcie_bytes("all_reduce", 8e9, fabric.path(H100, 8, "pcie")) == pytest.approx(14e9)


def test_what_else_crosses_pcie() -> None:
    """An optimizer on the host is given gradients and gives weights; a loader of images only sends to the device."""
    framed = 280 / 256
    tokens = 16 * 2048
    sent, received = pcie.step_bytes(training.steady(replace(job(8), offloaded=True)))
    assert sent == pytest.approx(2 * models.LLAMA_8B.parameters / 8 * framed)
    assert received == pytest.approx(sent + tokens * framed)
    images = Job(H100, models.RESNET_50, fabric.best(H100, 2), 256)
    assert pcie.step_bytes(training.steady(images)) == pytest.approx((0.0, 256 * 602_112 * framed))
    state = training.steady(images)
    rates = pcie.rates(state, [100] * 50, np.full(50, 100 * state.step_s), generator(1, "test"))
    assert rates.shape == (50, 2, 2)
    assert rates[..., 1].mean() == pytest.approx(256 * 602_112 * framed / state.step_s, rel=0.05)


@given(size=SIZES, factor=st.floats(1, 100), ranks=st.sampled_from(RANKS))
@settings(max_examples=30, deadline=None)
def test_faster_link_is_never_slower(size: float, factor: float, ranks: int) -> None:
    """Whatever is exchanged, a faster path takes no longer."""
    slow = fabric.best(H100, ranks)
    fast = replace(
        slow,
        inside_bytes_per_s=slow.inside_bytes_per_s * factor,
        between_bytes_per_s=slow.between_bytes_per_s * factor,
    )
    for kind in ("all_reduce", "all_gather"):
        assert fabric.seconds(kind, size, fast) <= fabric.seconds(kind, size, slow)


@given(size=SIZES)
@settings(max_examples=30, deadline=None)
def test_more_ranks_never_exchange_in_less_time(size: float) -> None:
    """The same collective over more ranks takes no less time."""
    for gpu in GPUS.values():
        took = [fabric.seconds("all_reduce", size, fabric.best(gpu, ranks)) for ranks in RANKS]
        assert took == sorted(took)


@given(m=st.integers(1, 9000), n=st.integers(1, 9000), k=st.integers(1, 9000))
@settings(max_examples=30, deadline=None)
def test_no_product_beats_the_peak(m: int, n: int, k: int) -> None:
    """A product's efficiency is a share, and its padded FLOPs are no fewer than its own."""
    for gpu in GPUS.values():
        assert 0 < kernels.product_efficiency(gpu, m, n, k) < 1


def test_decode_saturates() -> None:
    """Tokens a second rise with the batch, each sequence adding less than the one before."""
    service = Service(H100, models.LLAMA_8B, fabric.best(H100, 1), 1.0, 256, 800, 500, 300)
    rates = [serving.tokens_per_s(service, float(size)) for size in range(1, 257)]
    gains = np.diff(rates)
    assert (gains > 0).all()
    assert gains[-1] < 0.3 * gains[0]
    assert rates[-1] < 256 * rates[0] / 2


@pytest.mark.parametrize("share", [1.0, 14 / 108, 42 / 108])
def test_images_saturate(share: float) -> None:
    """Images a second never fall with the batch, on a GPU or on a slice of one, and a slice serves fewer."""
    service = Service(A100, models.VIT_L, fabric.best(A100, 1), 1.0, 64, share=share)
    rates = [serving.tokens_per_s(service, float(size)) for size in (1, 2, 4, 8, 16, 32, 64)]
    assert rates == sorted(rates)
    assert rates[-1] <= serving.tokens_per_s(replace(service, share=1.0), 64.0)


def test_what_bounds_a_batch() -> None:
    """Memory, the server's limit and the promise each bound the batch, and the least of them counts."""
    service = Service(H100, models.LLAMA_8B, fabric.best(H100, 1), 1.0, 256, 24_000, 23_000, 300)
    weights, cache = 2 * models.LLAMA_8B.parameters, 24_000 * models.LLAMA_8B.kv_bytes
    assert serving.capacity(service).by_memory == pytest.approx((0.9 * 80e9 - weights) / cache)
    assert serving.capacity(replace(service, most_running=3)).usable == 3
    promise = serving.step_s(service, 5.0)
    assert serving.capacity(replace(service, latency_s=promise)).usable == 5


@given(fill=st.floats(0.05, 0.65))
@settings(max_examples=30, deadline=None)
def test_demand_keeps_its_batch(fill: float) -> None:
    """Arrivals that should keep a share of the batch running do so, and next to nobody waits."""
    service = Service(H100, models.LLAMA_8B, fabric.best(H100, 1), 1.0, 64, 800, 500, 300, swing=0.0)
    service = recipes.with_fill(service, fill)
    load = serving.loads(service, Jitter(generator(2, "load"), 0.001), 600, 0.0, 0.0, 0.0)
    assert float(load.running.mean()) == pytest.approx(max(1.0, fill * 64), rel=0.1)
    assert float(load.waiting.max()) < 1.0
    assert float((load.decode_s + load.prefill_s).max()) <= 1.0 + 1e-9


def test_overload_queues() -> None:
    """Twice the demand that can be served fills the batch and the queue."""
    service = Service(H100, models.LLAMA_8B, fabric.best(H100, 1), 1.0, 32, 800, 500, 300, swing=0.0)
    most = serving.rate_for(service, 32)
    load = serving.loads(replace(service, rate_per_s=2 * most), Jitter(generator(3, "load"), 0.001), 600, 0.0, 0.0, 0.0)
    assert float(load.running[-1]) == pytest.approx(32)
    assert float(load.waiting[-1]) > 100


def test_clock_falls_with_power_and_heat() -> None:
    """A lower limit, less cooling or more work never raises the clock; what holds it is named."""
    full = power.clock(H100, 1.0, Cooling())
    assert full.reasons == (power.POWER_CAP,)
    assert power.clock(H100, 0.3, Cooling()).ratio == pytest.approx(H100.boost)
    ratios = [power.clock(H100, 1.0, Cooling(limit)).ratio for limit in (1.0, 0.8, 0.6, 0.4)]
    assert ratios == sorted(ratios, reverse=True)
    hot = power.clock(H100, 1.0, Cooling(lost=0.7))
    assert hot.ratio < full.ratio
    assert hot.reasons == (power.THERMAL,)


@pytest.mark.parametrize(
    ("kind", "variant"),
    [(kind, variant) for kind, found in KINDS.items() for variant in found.variants if kind != "poor_topology"],
)
def test_nothing_is_lost_at_severity_zero(kind: str, variant: str) -> None:
    """A fault of severity 0 leaves every step as it was."""
    healthy = job()
    faulty = applied(healthy, Injected(kind, variant, 0.0, 0.0, 1.0))
    drawn = noise(healthy)
    took = [training.times(training.steady(each), drawn, 0.0, 0.0, None).total_s for each in (healthy, faulty)]
    assert took[1] == pytest.approx(took[0])


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("poor_topology", "slow_link"),
        ("configuration_drift", "dtype"),
        ("configuration_drift", "attention"),
        ("configuration_drift", "library"),
        ("configuration_drift", "checkpointing"),
        ("input_bound", "loader"),
        ("thermal_or_power", "hot_gpu"),
        ("thermal_or_power", "power_cap"),
        ("straggler", "slow_rank"),
    ],
)
def test_worse_is_never_faster(kind: str, variant: str) -> None:
    """More of a fault takes no less time, and much of it takes more."""
    healthy = job()
    drawn = noise(healthy)
    took = [
        float(
            training.times(
                training.steady(applied(healthy, Injected(kind, variant, severity, 0.0, 1.0, 3))), drawn, 0.0, 0.0, None
            ).total_s.sum()
        )
        for severity in (0.0, 0.3, 0.6, 0.9)
    ]
    assert took == sorted(took)
    assert took[-1] > 1.05 * took[0]


def test_a_step_is_its_parts() -> None:
    """Data, the latest rank, communication and host add up to the step; the latest rank has no skew."""
    found = training.times(training.steady(job()), noise(job()), 0.0, 0.0, None)
    own = found.total_s[:, None] - (found.data_s + found.comm_s + found.host_s)[:, None] - found.skew_s
    assert (own > 0).all()
    assert found.skew_s.min(axis=1) == pytest.approx(0.0, abs=1e-12)
    assert own.max(axis=1) == pytest.approx(found.total_s - found.data_s - found.comm_s - found.host_s)


def test_a_slow_rank_is_waited_for() -> None:
    """A rank that computes for half as long again is the one without skew."""
    slow = applied(job(), Injected("straggler", "slow_rank", 0.5, 0.0, 1.0, 5))
    found = training.times(training.steady(slow), noise(slow), 0.0, 0.0, None)
    assert int(found.skew_s.sum(axis=0).argmin()) == 5
    assert float(found.skew_s[:, 0].sum() / found.total_s.sum()) > 0.25


def test_spreading_shrinks_nothing_but_time_behind_work() -> None:
    """The same work over more machines shows more of its communication."""
    exposed = [training.steady(job(ranks)).exposed_s for ranks in (8, 16, 32)]
    assert exposed == sorted(exposed)
    assert training.ideal_links_ratio(job(32)) >= training.ideal_links_ratio(job(8))


def test_healthy_jobs_are_tuned_and_differ() -> None:
    """Jobs of the catalogue waste next to nothing, and their MFU spreads as real ones' does."""
    rng = generator(4, "jobs")
    found = [training.steady(recipes.job(rng)) for _ in range(80)]
    mfu = [each.work.model_flops / each.job.gpu.bf16_flops_per_s / each.step_s for each in found]
    assert min(mfu) > 0.1
    assert max(mfu) < 0.75
    assert float(np.std(mfu)) > 0.05
    assert all(recipes.tuned(each.job) for each in found)


def test_slices_by_hand() -> None:
    """Two of 3g leave a slice that nothing fits; two of 2g leave room for 3g only where memory starts allow it."""
    assert slices.free(("3g.40gb", "3g.40gb")) == 1
    assert not any(slices.placeable(("3g.40gb", "3g.40gb"), name) for name in slices.PROFILES)
    assert slices.fits(("1g.10gb",) * 7)
    assert not slices.fits(("1g.10gb",) * 8)
    assert slices.placeable(("3g.40gb",), "4g.40gb")
    assert not slices.placeable(("2g.20gb", "2g.20gb"), "4g.40gb")
    assert slices.stranded(("2g.20gb", "2g.20gb"), ("4g.40gb",)) == pytest.approx(3 / 7)
    assert slices.stranded(("3g.40gb",), ("4g.40gb",)) == 0.0
    assert slices.stranded(("3g.40gb",), ()) == 0.0


def test_noise_is_what_it_says() -> None:
    """Factors are around one, correlated with their predecessors, and a few are much larger."""
    drawn = Jitter(generator(5, "noise"), 0.01).factors(20_000, 0.0, 1.0)
    logs = np.log(drawn)
    assert abs(float(np.median(logs))) < 0.005
    quick = logs[logs < 0.04]
    assert 0.4 < float(np.corrcoef(quick[:-1], quick[1:])[0, 1]) < 0.8
    assert 0.005 < float((drawn > 1.045).mean()) < 0.03
    assert float(drawn.max()) <= 2 * math.e**0.1


def test_shared_limit_is_nobodys_fault() -> None:
    """Under a limit that a whole cohort shares all ranks have one clock, below the reference."""
    capped = replace(job(), gpu=A100, path=fabric.best(A100, 8), rest=recipes.CAP)
    ratios = {each.ratio for each in training.steady(capped).clocks}
    assert len(ratios) == 1
    assert ratios.pop() < 0.9
