"""What the provider's counters say, by hand and by law: estimates, health, the witness. No store."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.provider.fleet import Gpu, Shown, estimate, fleet_use, judge, reference
from mfu_sdk.provider.fleet.health import clock_ratios
from mfu_sdk.provider.fleet.use import Useful
from mfu_sdk.provider.fleet.witness import witnesses
from mfu_sdk.provider.fleet.xid import XIDS, xid
from mfu_sdk.provider.rollup import Range

H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989_429_760_000_000.0
HOUR = 3600 * 10**9
DAY = Range(0, 24 * HOUR)


def gpu(name: str = "GPU-0", /, **changes: object) -> Gpu:
    """An hour of an H100 that sent no steps: a tensor pipe busy half of the time at 1464 of 1830 MHz."""
    sums: dict[str, object] = dict.fromkeys(Gpu.__dataclass_fields__, 0.0)
    sums |= {
        "host": "node-1", "gpu": name, "gpu_type": H100, "share": 1.0, "first_unix_ns": 0, "seconds": 3600.0,
        "untold_mhz_s": 0.5 * 1464 * 3600, "untold_s": 3600.0, "xid_samples": 60, "double_samples": 60,
        "single_samples": 0,
    }  # fmt: skip
    return Gpu(**{**sums, **changes})  # type: ignore[arg-type]  # of the fields' types


def shown(value: int, at_h: float, previous: int = 0, **changes: object) -> Shown:
    """GPU-0 began to show an Xid, of a metric that is told from the first hour."""
    row = Shown("node-1", "GPU-0", "xid", value, previous, int(at_h * HOUR), 0, int(at_h * HOUR))
    return replace(row, **changes)  # type: ignore[arg-type]  # of the fields' types


@pytest.mark.parametrize(
    ("gpu_type", "mhz"),
    [
        (H100, 1830.0),
        ("NVIDIA-H100-80GB-HBM3", 1830.0),
        ("NVIDIA A100-SXM4-80GB", 1410.0),
        ("NVIDIA H20", None),
        ("AMD Instinct MI300X", None),
        ("GPU", None),
        ("", None),
        (None, None),
    ],
    ids=["H100", "hyphens", "A100", "a cap without a clock", "AMD", "no type", "empty", "unsaid"],
)
def test_the_reference_is_the_papers(gpu_type: str | None, mhz: float | None) -> None:
    """The clock is the one that the peak on paper assumes; where no figure follows a clock there is none."""
    found = reference(gpu_type)
    assert (None if found is None else found.mhz) == mhz


def test_an_estimate_by_hand() -> None:
    """Half of the time at 0.8 of the clock is 0.4 of the peak; a slice counts by its SMs."""
    whole = estimate([gpu()])
    assert whole.mfu == pytest.approx(0.4)
    assert (whole.gpu_hours, whole.gpus) == (1.0, 1)
    assert whole.flops == pytest.approx(0.4 * PEAK * 3600)
    both = estimate([gpu(), gpu("GPU-1", share=3 / 7, untold_mhz_s=0.0)])
    assert both.gpu_hours == pytest.approx(10 / 7)
    assert both.mfu == pytest.approx(0.4 * 7 / 10)


@pytest.mark.parametrize(
    "changes",
    [{"gpu_type": None}, {"gpu_type": "NVIDIA H20"}, {"share": None}, {"untold_s": 0.0}],
    ids=["no type", "no clock", "no share", "no hours"],
)
def test_unknown_stays_unknown(changes: dict[str, object]) -> None:
    """What has no reference, no share or no hours is in no estimate, and an estimate over nothing is None."""
    lacking = gpu("GPU-0", **changes)
    assert estimate([lacking]).mfu is None
    assert estimate([lacking, gpu("GPU-1")]) == estimate([gpu("GPU-1")])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(100, 1980), st.floats(1, 86_400)), min_size=1, max_size=12))
def test_estimates_add(hours: list[tuple[float, float, float]]) -> None:
    """An estimate of all is Σ FLOPs / Σ available of its parts, and lies between the least and the most of them."""
    rows = [
        gpu(f"GPU-{number}", untold_mhz_s=active * mhz * seconds, untold_s=seconds)
        for number, (active, mhz, seconds) in enumerate(hours)
    ]
    whole, parts = estimate(rows), [estimate([row]) for row in rows]
    assert whole.flops == pytest.approx(sum(part.flops for part in parts))
    assert whole.available_flops == pytest.approx(sum(part.available_flops for part in parts))
    mfus = [part.mfu for part in parts if part.mfu is not None]
    assert whole.mfu is not None
    assert min(mfus) * (1 - 1e-9) <= whole.mfu <= max(mfus) * (1 + 1e-9) + 1e-300


def test_clocks_against_their_kind() -> None:
    """Medians are of one type's GPUs that were busy for half an hour, three of them at least."""
    busy = [gpu(f"GPU-{n}", busy_mhz_s=mhz * 3600, busy_s=3600.0) for n, mhz in enumerate((1800, 1800, 1500))]
    assert clock_ratios(busy) == {"GPU-0": 1.0, "GPU-1": 1.0, "GPU-2": pytest.approx(1500 / 1800)}
    assert clock_ratios(busy[1:]) == {}
    assert clock_ratios([*busy[1:], replace(busy[0], busy_s=60.0, busy_mhz_s=60.0)]) == {}
    assert clock_ratios([*busy[1:], replace(busy[0], gpu_type="NVIDIA A100-SXM4-80GB")]) == {}
    found = judge(busy, (), 0)["node-1"]
    assert found.clock_ratio == pytest.approx(1500 / 1800)
    assert (found.state, found.slow_gpus) == ("watch", ("GPU-2",))
    assert found.advice is not None
    assert "83%" in found.advice


@pytest.mark.parametrize(
    ("code", "state"), [(79, "unhealthy"), (94, "watch"), (31, "healthy"), (999, "watch")],
    ids=["off the bus", "contained", "a program's", "not listed"],
)  # fmt: skip
def test_an_xid_weighs(code: int, state: str) -> None:
    """Codes of the node are drained, those of a program are no sign of its health, and unknown ones are looked up."""
    found = judge([gpu()], [shown(code, 1)], 0)["node-1"]
    assert found.state == state
    assert (found.advice is None) == (state == "healthy")
    assert [(seen.code, seen.times, seen.last_at) for seen in found.xids] == [(code, 1, "1970-01-01T01:00:00Z")]


def test_times_are_appearances() -> None:
    """The same code twice with another between is twice; one that stood before the range is none of it, and is told."""
    rows = [shown(31, 3), shown(43, 4, 31), shown(31, 5, 43)]
    rows = [replace(row, last_unix_ns=9 * HOUR) for row in rows]
    seen = {each.code: each for each in judge([gpu()], rows, 2 * HOUR)["node-1"].xids}
    assert (seen[31].times, seen[43].times) == (2, 1)
    later = {each.code: each for each in judge([gpu()], rows, 6 * HOUR)["node-1"].xids}
    assert [(each.times, each.last_at) for each in later.values()] == [(0, None), (0, None)]
    assert judge([gpu()], rows, 10 * HOUR)["node-1"].xids == ()


@pytest.mark.parametrize(
    ("rows", "rise"),
    [
        ([(2, 0, 5.0, 0.0)], 2),
        ([(2, 0, 5.0, 5.0)], 0),
        ([(2, 0, 5.0, 0.0), (5, 2, 6.0, 0.0)], 5),
        ([(5, 0, 5.0, 5.0), (1, 5, 6.0, 5.0)], 1),
        ([(7, 0, 0.5, 0.0), (8, 7, 5.0, 0.0)], 1),
        ([], 0),
    ],
    ids=["rose", "stood when first told", "rose twice", "was reset", "before the range", "never"],
)
def test_ecc_errors_are_a_rise(rows: list[tuple[int, int, float, float]], rise: int) -> None:
    """A counter's errors in the range are by how much it rose, from a value that was seen."""
    told = [
        shown(value, at_h, previous, metric="double", known_unix_ns=int(known_h * HOUR))
        for value, previous, at_h, known_h in rows
    ]
    found = judge([gpu()], told, HOUR)["node-1"]
    assert found.double_bit_errors == rise
    assert (found.state == "unhealthy") == (rise > 0)
    assert found.single_bit_errors is None


def test_an_error_that_has_an_xid_is_told_once() -> None:
    """Double-bit errors beside Xid 48 are the same event: one sentence."""
    rows = [shown(48, 5), shown(1, 5, metric="double")]
    found = judge([gpu()], rows, 0)["node-1"]
    assert (found.double_bit_errors, found.state) == (1, "unhealthy")
    assert found.advice is not None
    assert found.advice.count("drain") == 1


def test_nothing_told_is_not_healthy() -> None:
    """A node of which no exporter tells Xids, ECC or clocks is unknown, and none of its figures is zero."""
    silent = gpu(xid_samples=0, double_samples=0)
    found = judge([silent], (), 0)
    assert (found["node-1"].state, found["node-1"].double_bit_errors) == ("unknown", None)
    use = fleet_use(DAY, (), {}, {}, {}, None, Useful(None, None, None, None, None))
    assert (use.nodes, use.over) == ((), "all")
    for figure in (use.allocation, use.gpu_utilization, use.tensor_activity, use.mfu, use.estimated_mfu):
        assert figure.value is None
    assert use.estimated_flop is None


def test_every_xid_says_what_to_do() -> None:
    """Each listed code has a meaning and a remedy; what is to be drained says so."""
    for code, known in XIDS.items():
        assert known.meaning
        assert known.remedy
        assert ("drain" in known.remedy) == (known.weight == "node"), code
    assert "docs.nvidia.com" in xid(1234).remedy


def test_a_witness_by_hand() -> None:
    """Steps for half of two hours at 0.6 of the peak count 0.3 over them; pipes at 0.2 × 1830 MHz saw 0.2.

    Another GPU, idle for its hour but for what its exporter saw of it, has its hours in both.
    """
    row = {
        "tenant": "acme", "workload": "gpt", "family": "", "gpu_type": H100, "world_size": -1, "intent": "",
        "fingerprint": "", "phase": "train", "hardware_flop": 0.6 * PEAK * 3600, "available_flop": PEAK * 3600,
        "step_time_s": 3600.0, "wall_s": 7200, "mhz_s": 0.2 * 1830 * 7200, "device": "GPU-0",
        "bus_s": 3600, "bus_tx_bytes": 36e12, "bus_rx_bytes": 72e12,
    }  # fmt: skip
    (found,) = witnesses([row]).items()
    assert found[0] == ("acme", "gpt", None, H100, None, None, None, "train")
    assert found[1].hardware_mfu == pytest.approx(0.3)
    assert found[1].utilization == pytest.approx(0.2)
    assert (found[1].gpu_hours, found[1].device_hours) == (2.0, {"GPU-0": 2.0})
    idle = {**row, "device": "GPU-1", "step_time_s": 36.0, "wall_s": 3600, "mhz_s": 0.05 * 1830 * 3600}
    idle |= {"hardware_flop": 0.6 * PEAK * 36, "available_flop": PEAK * 36}
    ((_, both),) = witnesses([row, idle]).items()
    # 3,636 s of steps at 0.6 in three hours; 0.2 for two of them and 0.05 for one.
    assert both.hardware_mfu == pytest.approx(0.6 * 3636 / 10_800)
    assert both.utilization == pytest.approx(0.45 / 3)
    assert both.device_hours == {"GPU-0": 2.0, "GPU-1": 1.0}
    # 10 and 20 GB/s on one device, nothing on the other; of a device without figures nothing is known.
    assert (found[1].pcie_tx_bytes_per_s, found[1].pcie_rx_bytes_per_s) == (10e9, 20e9)
    ((_, both),) = witnesses([row, {**idle, "bus_tx_bytes": 0.0, "bus_rx_bytes": 0.0}]).items()
    assert (both.pcie_tx_bytes_per_s, both.pcie_rx_bytes_per_s) == (5e9, 10e9)
    ((_, both),) = witnesses([row, {**idle, "bus_s": 0}]).items()
    assert (both.pcie_tx_bytes_per_s, both.pcie_rx_bytes_per_s) == (None, None)
    assert witnesses([{**row, "gpu_type": "NVIDIA H20"}]) == {}
