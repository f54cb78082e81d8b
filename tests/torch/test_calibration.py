"""When a device is measured: first of all, after a week, when a run beats its peak, and between two steps of a run."""

import json
import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mfu_sdk as mfu
from mfu_sdk import guard, testing
from mfu_sdk.errors import CalibrationError, ConfigurationError
from mfu_sdk.peak import calibrate as calibration
from mfu_sdk.peak import cpu, merge
from mfu_sdk.peak.calibrate import current, suspect
from mfu_sdk.peak.device import Device
from mfu_sdk.peak.key import key_of, same_kind
from mfu_sdk.peak.results import STALE_S, Results
from mfu_sdk.records import Peaks, Rate, RunSummary, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import HostClock
from mfu_sdk.settings import Settings

FIRST_LOOK = pytest.approx(2.25, abs=0.75)
"""What is left of 3 s for measuring: half at the least, and never all."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Beside other tests, threads that wait for one another at each product measure the scheduler, a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    guard._said.clear()
    return Settings(cache_dir=tmp_path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The budgets of the measurements that were made; each is real, and cut to a fifth of a second."""
    budgets: list[float] = []
    real = cpu.measure

    def counted(budget_s: float, *rest: Any) -> Any:
        budgets.append(budget_s)
        return real(0.2, *rest)

    monkeypatch.setattr(cpu, "measure", counted)
    return budgets


def file_of(settings: Settings) -> Path:
    assert settings.cache_dir is not None
    (found,) = (settings.cache_dir / "calibrations").glob("*.json")
    return found


def aged(settings: Settings, seconds: float, scale: float = 1.0) -> None:
    """Make the stored calibration older, and its rates other ones."""
    path = file_of(settings)
    document = json.loads(path.read_text())
    results = Results(path.parent, now=lambda: time.time() - seconds)
    peaks = Results(path.parent).load(document["key"])
    assert peaks is not None
    rates = {
        name: Rate(rate.flops_per_s * scale, rate.low * scale, rate.high * scale, rate.source, 0.0)
        for name, rate in peaks.achievable.items()
    }
    state = {name: value for name, value in peaks.state.items() if not name.endswith("_burst_flops_per_s")}
    results.save(document["key"], replace(peaks, achievable=rates, state=state), results.history(document["key"]))


def test_a_run_reads_back_what_was_measured(settings: Settings, measured: list[float]) -> None:
    """The first run measures, the next one does not."""
    first, was_measured = current("cpu", None, 3.0, settings=settings)
    assert was_measured
    second, was_measured = current("cpu", None, 3.0, settings=settings)
    assert not was_measured
    assert second.calibration_id == first.calibration_id
    assert measured == [FIRST_LOOK]


def test_a_week_old_one_is_probed(settings: Settings, measured: list[float]) -> None:
    """A probe that agrees makes it fresh again, with the same value; the probe is short."""
    first, _ = current("cpu", None, 3.0, settings=settings)
    aged(settings, STALE_S + 60)
    # ± 25 % and more: even a busy machine lies within, once the interval is opened.
    path = file_of(settings)
    document = json.loads(path.read_text())
    for rate in document["peaks"]["achievable_flops_per_s"].values():
        rate["low"], rate["high"] = rate["value"] / 100, rate["value"] * 100
    path.write_text(json.dumps(document))
    again, was_measured = current("cpu", None, 3.0, settings=settings)
    assert was_measured
    assert measured[0] == FIRST_LOOK
    assert len(measured) == 2
    assert measured[1] < 1.0
    assert again.achievable["float32"].flops_per_s == first.achievable["float32"].flops_per_s
    assert again.achievable["float32"].age_s == 0
    assert current("cpu", None, 3.0, settings=settings)[1] is False


def test_a_probe_that_disagrees_measures_again(settings: Settings, measured: list[float]) -> None:
    """What was a hundred times faster last week is not what this device does."""
    current("cpu", None, 3.0, settings=settings)
    aged(settings, STALE_S + 60, scale=100.0)
    found, _ = current("cpu", None, 3.0, settings=settings)
    assert len(measured) == 3
    assert measured[2] == FIRST_LOOK
    assert found.achievable["float32"].age_s < 60


def test_a_doubted_one_is_measured_again(settings: Settings, measured: list[float]) -> None:
    """Once a run has shown that a peak is too low, the next run measures before it starts, and the doubt is gone."""
    current("cpu", None, 3.0, settings=settings)
    suspect("cpu", "40 of 50 steps were faster", settings=settings)
    assert "faster" in str(mfu.peaks("cpu", settings=settings).state["suspect"])
    current("cpu", None, 3.0, settings=settings)
    assert measured == [FIRST_LOOK, FIRST_LOOK]
    assert "suspect" not in mfu.peaks("cpu", settings=settings).state


def test_history_grows_by_tier(settings: Settings, measured: list[float]) -> None:
    """Each run adds its values to those of its tier; the third has an interval of theirs."""
    for _ in range(3):
        mfu.calibrate("cpu", settings=settings)
    calibration.in_situ("cpu", None, settings=settings)
    history = json.loads(file_of(settings).read_text())["history"]
    assert len(history["float32 burst"]) == len(history["memory burst"]) == 3
    assert len(history["float32 in situ"]) == 1


def test_sustained_takes_its_time(settings: Settings, measured: list[float]) -> None:
    """A minute of heat and three windows of five seconds five seconds apart: 85 s, however small the budget."""
    found = mfu.calibrate("cpu", budget_s=1.0, sustained=True, settings=settings)
    assert measured == [85.0]
    assert found.state["tier"] == "sustained"


def test_working_heat_outlives_a_first_look() -> None:
    """A sustained rate stays for a week when a first look follows; one in situ gives way to it."""

    def peaks_of(tier: str, value: float, age_s: float = 0.0) -> Peaks:
        rate = Rate(value, value, value, f"calibrated: {tier}, torch.mm", age_s)
        return Peaks("cuda:0", {}, {"bfloat16": rate}, None, None, {"tier": tier})

    def merged(old: Peaks, new: Peaks) -> float:
        return merge.merged(old, new).achievable["bfloat16"].flops_per_s

    sustained, situ, burst = peaks_of("sustained", 1.0), peaks_of("in situ", 2.0), peaks_of("burst", 3.0)
    assert merged(sustained, burst) == merged(sustained, situ) == 1.0
    assert merged(burst, situ) == 2.0
    assert merged(situ, sustained) == 1.0
    assert merged(peaks_of("sustained", 1.0, STALE_S + 1), burst) == 3.0
    doubted = replace(sustained, state={**sustained.state, "suspect": "too low"})
    assert merged(doubted, burst) == 3.0


def test_smaller_operands_outrank_nothing() -> None:
    """A rate of a run that left room for small operands only gives way to a first look at large ones."""

    def peaks_of(tier: str, how: str, value: float) -> Peaks:
        rate = Rate(value, value, value, f"calibrated: {tier}, {how}", 0.0)
        return Peaks("cuda:0", {}, {"bfloat16": rate}, None, None, {"tier": tier})

    small, large = peaks_of("in situ", "torch.mm 512×512×512", 1.0), peaks_of("burst", "torch.mm 8192×8192×8192", 3.0)
    same = peaks_of("in situ", "torch.mm 8192×8192×8192", 2.0)
    assert merge.merged(small, large).achievable["bfloat16"].flops_per_s == 3.0
    assert merge.merged(same, large).achievable["bfloat16"].flops_per_s == 2.0


def test_what_was_said_of_an_earlier_measurement_goes() -> None:
    """What was seen then is not true now; what was measured of other dtypes stays, and compiled kernels add up."""
    rate = Rate(1.0, 1.0, 1.0, "calibrated: burst, torch.mm", 0.0)
    here = {"measured_on": platform.node()}
    then = {
        "degraded": "power brake", "theory_missing": "NVML", "bfloat16_at_max_clock_flops_per_s": 1.0,
        "bfloat16_refused": "gemm: wrong", "bfloat16_kernels": "gemm bfloat16, torch.mm bfloat16",
        "bfloat16_sustained_flops_per_s": 5.0, "float16_winner": "torch.mm", "float8_e5m2_missing": "none is known",
    }  # fmt: skip
    now = {"bfloat16_kernels": "torch.mm bfloat16", "bfloat16_winner": "torch.mm"}
    old = Peaks("cuda:0", {}, {"bfloat16": rate, "float16": rate}, None, None, {**then, **here})
    found = merge.merged(old, Peaks("cuda:0", {}, {"bfloat16": rate}, None, None, {**now, **here}))
    assert dict(found.state) == {
        "bfloat16_sustained_flops_per_s": 5.0, "float16_winner": "torch.mm", "float8_e5m2_missing": "none is known",
        "bfloat16_winner": "torch.mm", "bfloat16_kernels": "gemm bfloat16, torch.mm bfloat16", **here,
    }  # fmt: skip
    assert merge.compiled(found) == {"gemm bfloat16", "torch.mm bfloat16"}
    elsewhere = replace(found, state={**found.state, "measured_on": "another host"})
    assert merge.compiled(elsewhere) == frozenset()


def test_another_devices_rate_is_a_prior(tmp_path: Path) -> None:
    """A sister's rate stands in, named and widened, only for the same product, and never as a measurement."""
    sister = {"kind": "cuda", "name": "NVIDIA H200", "uuid": "GPU-1", "multiprocessors": 132, "memory_bytes": 1 << 37}
    results = Results(tmp_path, now=lambda: 1000.0)
    rate = Rate(700e12, 690e12, 710e12, "calibrated: burst, torch.mm", 0.0)
    results.save(sister, Peaks("cuda:0", {}, {"bfloat16": rate}, None, None, {}, calibration_id="abc"))
    mine = sister | {"uuid": "GPU-2"}
    found = Results(tmp_path, now=lambda: 1060.0).prior(mine, same_kind)
    assert found is not None
    assert found.achievable["bfloat16"] == Rate(700e12, 665e12, 735e12, "prior: burst, torch.mm of GPU-1", 60.0)
    assert found.calibration_id is None
    assert results.load(mine) is None
    assert results.prior(mine | {"multiprocessors": 114}, same_kind) is None
    assert results.prior(mine | {"power_limit_w": 400}, same_kind) is None


def test_the_key_of_a_processor() -> None:
    """Threads and cores move the number, so they are in the key."""
    key = key_of(Device("cpu", "a processor", None, None))
    assert key["threads"] == torch.get_num_threads()
    assert key["protocol"] == 2


# --- between two steps of a run ---------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


PEAKS = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    """The clock of a run's steps: it moves only when a test says so."""
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    return fake


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_no_step_holds_the_calibration(
    settings: Settings,
    measured: list[float],
    monkeypatch: pytest.MonkeyPatch,
    clock: testing.FakeClock,
    marked: bool,
) -> None:
    """Between two steps of half a second it takes nine, which are in no step's time; every step is there."""
    really = cpu.measure

    def takes_its_time(*arguments: Any) -> Any:
        clock.advance(9.0)
        return really(*arguments)

    monkeypatch.setattr(cpu, "measure", takes_its_time)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    records: list[StepRecord] = []

    def work() -> None:
        model(torch.randn(8, 64)).sum().backward()
        clock.advance(0.5)
        optimizer.step()
        optimizer.zero_grad()

    with mfu.monitor(model, peaks=PEAKS, on_step=records.append, settings=settings) as run:
        for index in range(12):
            if index == 6:
                found = run.calibrate()
                assert found is not None
                assert found.state["tier"] == "in situ"
            if marked:
                with run.step():
                    work()
            else:
                work()
    assert measured == [1.0]
    assert [record.index for record in records] == list(range(12))
    assert [record.duration_s for record in records] == [0.5] * 12


def test_not_inside_of_a_step(settings: Settings, measured: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Inside of a step nothing is measured, and it is said; so for a budget that cannot be."""
    model = Model()
    with mfu.monitor(model, peaks=PEAKS, settings=settings) as run:
        with run.step(), caplog.at_level(logging.WARNING):
            assert run.calibrate() is None
        assert "between two steps" in caplog.text
        with pytest.raises(ConfigurationError, match="must be above 0"):
            run.calibrate(budget_s=0)
    assert measured == []
    assert run.calibrate() is None


@pytest.mark.parametrize("watched", [True, False], ids=["model", "no model"])
def test_a_failed_one_ends_nothing(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    clock: testing.FakeClock,
    watched: bool,
) -> None:
    """Whatever goes wrong between two steps, all later ones are there, and the time that it took is in none."""

    def fails(*_: object) -> Any:
        clock.advance(9.0)
        raise RuntimeError("CUDA error: out of memory")

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    records: list[StepRecord] = []
    with mfu.monitor(model if watched else None, peaks=PEAKS, on_step=records.append, settings=settings) as run:
        for index in range(12):
            if index == 4:
                monkeypatch.setattr(cpu, "measure", fails)
                with caplog.at_level(logging.WARNING):
                    assert run.calibrate() is None
            model(torch.randn(8, 64)).sum().backward()
            clock.advance(0.5)
            optimizer.step()
    assert "out of memory; the run goes on with" in caplog.text
    assert len(records) == 12
    assert [record.duration_s for record in records[1:]] == [0.5] * 11


def test_a_denominator_does_not_move(settings: Settings, measured: list[float]) -> None:
    """A processor's measured peak is its denominator: the run keeps it to its end, and says that there is a new one."""
    model = Model()
    with mfu.monitor(model, peaks=PEAKS, settings=settings) as run:
        for _ in range(4):
            with run.step():
                model(torch.randn(8, 64))
            run.calibrate()
    summary = run.summary()
    assert summary.peak_flops_per_s == 1e12
    assert any("keeps its denominator" in note for note in summary.notes)


def test_steps_beyond_the_peak_cast_doubt(settings: Settings, measured: list[float]) -> None:
    """A calibration that steps outrun is measured again by the next run; one that they do not reach is left alone."""
    model = Model()

    def train(name: str) -> RunSummary:
        with mfu.monitor(model, name=name, settings=settings) as run:
            for _ in range(12):
                with run.step():
                    model(torch.randn(256, 64))
        return run.summary()

    # Beyond doubt either way, however busy the machine was when it was measured: a million times it, and a millionth.
    current("cpu", None, 3.0, settings=settings)
    aged(settings, 0.0, scale=1e6)
    train("first")
    assert "suspect" not in mfu.peaks("cpu", settings=settings).state
    aged(settings, 0.0, scale=1e-12)
    doubted = train("second")
    assert any("too low" in note for note in doubted.notes)
    assert "steps of second were faster" in str(mfu.peaks("cpu", settings=settings).state["suspect"])
    # Without steps: what a busy machine measured in a moment, steps may outrun again.
    with mfu.monitor(model, name="third", settings=settings):
        pass
    assert len(measured) == 2
    assert "suspect" not in mfu.peaks("cpu", settings=settings).state


def test_a_failed_calibration_says_what_is_used(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the device cannot be measured the run goes on, and one line says against what."""

    def refuse(*_: object) -> Any:
        raise CalibrationError("cpu: out of order")

    monkeypatch.setattr(cpu, "measure", refuse)
    with caplog.at_level(logging.WARNING), mfu.monitor(Model(), settings=settings) as run:
        pass
    assert "out of order; the run goes on with no peak, and its MFU is unknown" in caplog.text
    assert run.summary().mfu is None


def test_where_nothing_may_be_written(
    settings: Settings, measured: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """A cache directory that is a file costs one warning; the run has its peak."""
    assert settings.cache_dir is not None
    blocked = settings.cache_dir / "blocked"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        found, was_measured = current("cpu", None, 3.0, settings=replace(settings, cache_dir=blocked))
    assert was_measured
    assert "float32" in found.achievable
    assert sum("calibration" in record.getMessage() for record in caplog.records) == 1
