"""The witness: what the device counted between two moments, whole or in slices."""

import threading

import pytest

from mfu_sdk.peak.nvml import Activity, Nvml, Witness

from .conftest import WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc

# Cycles busy with: SMs (2), warps (3), any tensor (5), DFMA (6), HMMA (7), IMMA (9), memory (10).
START = {"busy2": 0, "busy3": 0, "busy5": 0, "busy6": 0, "busy7": 0, "busy9": 0, "busy10": 0}


def witness_of(nvml: Nvml, uuid: str = "GPU-00009") -> Witness:
    made = Witness.of(found(nvml, uuid))
    assert made is not None
    return made


def test_intervals(fake: Fake, nvml: Nvml) -> None:
    """Each reading is of the time since the one before, the first has nothing to tell."""
    fake.set(0, WHOLE, gpm=1, cycles=1000, **START)
    witness = witness_of(nvml)
    assert witness.take() is None
    fake.set(0, WHOLE, cycles=3000, busy2=1800, busy3=500, busy5=1000, busy6=0, busy7=900, busy9=100, busy10=640)
    assert witness.take() == Activity(0.5, 0.45, 0.0, 0.05, 0.9, 0.25, 0.32)
    # A second in which nothing ran.
    fake.set(0, WHOLE, cycles=5000)
    assert witness.take() == Activity(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    fake.set(0, WHOLE, cycles=6000, busy5=2000)
    activity = witness.take()
    assert activity is not None
    assert activity.tensor == 1.0


def test_a_slice_is_sampled_by_itself(fake: Fake, nvml: Nvml) -> None:
    """Of two slices each witness sees its own, through their GPU and the instance's number."""
    fake.mig(0, 16, 16)
    fake.set(0, WHOLE, gpm=1, cycles=0, **START)
    first, second = witness_of(nvml, "MIG-00000"), witness_of(nvml, "MIG-00001")
    for index in range(2):
        fake.set(0, index, cycles=0, **START)
    assert first.take() is None
    assert second.take() is None
    fake.set(0, 0, cycles=100, busy5=80)
    fake.set(0, 1, cycles=100, busy5=10)
    assert [activity.tensor for activity in (first.take(), second.take()) if activity] == [0.8, 0.1]


def test_a_metric_that_is_not_there(fake: Fake, nvml: Nvml) -> None:
    """One metric that the device lacks, or that makes no sense, is None; the others stand."""
    fake.set(0, WHOLE, gpm=1, cycles=0, **{**START, "busy6": -3})
    witness = witness_of(nvml)
    witness.take()
    fake.set(0, WHOLE, cycles=100, busy5=50)
    activity = witness.take()
    assert activity is not None
    assert (activity.tensor, activity.tensor_double) == (0.5, None)
    # No time passed: 0 / 0, and something / 0.
    fake.set(0, WHOLE, busy5=60)
    activity = witness.take()
    assert activity == Activity(None, None, None, None, None, None, None)


@pytest.mark.parametrize("fields", [{}, {"gpm": 0}, {"gpm": -4}], ids=["not supported", "no", "no permission"])
def test_no_witness(fake: Fake, nvml: Nvml, fields: dict[str, int]) -> None:
    """Before Hopper there is none."""
    fake.set(0, WHOLE, **fields)
    assert Witness.of(found(nvml)) is None
    assert fake.samples == 0


def test_a_slice_without_a_number(fake: Fake, nvml: Nvml) -> None:
    """A slice that cannot be sampled has no witness; its GPU's would be another's account."""
    fake.mig(0, 16)
    fake.set(0, WHOLE, gpm=1)
    fake.set(0, 0, instance=-4)
    assert Witness.of(found(nvml, "MIG-00000")) is None


@pytest.mark.parametrize("fake", [("-DBARE",)], indirect=True)
def test_an_old_library(fake: Fake, nvml: Nvml) -> None:
    """A library without the functions is a device without a witness."""
    assert Witness.of(found(nvml)) is None


def test_a_sample_that_failed(fake: Fake, nvml: Nvml) -> None:
    """It ends the interval: the next reading begins a new one, not one across the gap."""
    fake.set(0, WHOLE, gpm=1, cycles=100, **START)
    witness = witness_of(nvml)
    witness.take()
    fake.set(0, WHOLE, cycles=-15)
    assert witness.take() is None
    fake.set(0, WHOLE, cycles=300)
    assert witness.take() is None
    fake.set(0, WHOLE, cycles=400, busy5=25)
    activity = witness.take()
    assert activity is not None
    assert activity.tensor == 0.25


def test_closing_frees(fake: Fake) -> None:
    """Closed by itself or by its session, once, in either order; what is closed has nothing to say."""
    session = Nvml.open()
    fake.set(0, WHOLE, gpm=1, cycles=0, **START)
    first, second = witness_of(session), witness_of(session)
    assert fake.samples == 4
    first.close()
    first.close()
    assert fake.samples == 2
    assert first.take() is None
    session.close()
    assert (fake.samples, fake.sessions) == (0, 0)
    assert second.take() is None
    second.close()
    assert fake.samples == 0
    assert Witness.of(second._gpu) is None


def test_what_a_reading_costs(fake: Fake, nvml: Nvml) -> None:
    """One call the first time, two then."""
    fake.set(0, WHOLE, gpm=1, cycles=0, **START)
    witness = witness_of(nvml)
    before = fake.calls
    witness.take()
    assert fake.calls - before == 1
    witness.take()
    assert fake.calls - before == 3


def test_threads(fake: Fake, nvml: Nvml) -> None:
    """Threads that sample and close at the same time neither raise, nor free twice, nor sample what is freed."""
    fake.set(0, WHOLE, gpm=1, cycles=0, **START)
    witnesses = [witness_of(nvml) for _ in range(20)]
    begin = threading.Barrier(4)
    ended = []

    def work(index: int) -> None:
        begin.wait()
        for witness in witnesses:
            for _ in range(10):
                witness.take()
            if index % 2:
                witness.close()
        ended.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == [0, 1, 2, 3]
    assert fake.samples == 0
