"""A window's clock, its reasons and its witness, from the driver's library to the signals."""

import pytest

from mfu_sdk.export.windows import Windows, sums
from mfu_sdk.peak.looks import Looks
from mfu_sdk.records import Peaks, Rate, StepRecord
from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.observer import Observer

from .conftest import WHOLE, Fake, needs_gcc

pytestmark = needs_gcc

S = 10**9
RATE = Rate(720e12, 700e12, 740e12, "calibrated", 0.0)
# The paper's rate is that at 1,800 MHz (tests/core/test_observer.py).
PEAKS = Peaks(
    "cuda:0", {"bfloat16": Rate(1012.5e12, 1012.5e12, 1012.5e12, "theory", 0.0)}, {"bfloat16": RATE, "float32": RATE},
    None, None, {"bfloat16_clock_mhz": 1600.0, "bfloat16_efficiency": 0.8, "float32_clock_mhz": 1600.0},
)  # fmt: skip


def step(dtype: str | None) -> StepRecord:
    return StepRecord(
        0, "train", 4.0, 1, 1, 1.0, "theory", 0.1, None, None, None, None, "cached", 1.0, None, None, None, None,
        "exact", start_unix_ns=0, peak_dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "clock_ratio", "witness"),
    # Tensor pipes were busy for half of the time; float32 products do not run on them.
    [("bfloat16", 0.9, 0.45), ("float32", 1620 / 1600, None), (None, None, None)],
)
def test_how_the_device_was(fake: Fake, dtype: str | None, clock_ratio: float | None, witness: float | None) -> None:
    """1,620 MHz of 1,800 under a power cap, tensor pipes busy for half of the time: at most 0.45 of the peak."""
    fake.set(0, WHOLE, gpm=1, cycles=0, busy5=0, sm=1620)
    observer = Observer(Gathered(ranks=1), lambda: PEAKS, Looks("GPU-00009"))
    observer.look(0)
    fake.set(0, WHOLE, cycles=4000, busy5=2000)
    observer.look(4 * S)
    window, _ = Windows().add(step(dtype))
    found = observer.signals(window, sums(window.steps))
    assert (found.clock_ratio, found.witness) == (pytest.approx(clock_ratio), pytest.approx(witness))
    assert found.throttled == ("software power cap",)
    observer.close()
    assert (fake.sessions, fake.samples) == (0, 0)


def test_before_hopper(fake: Fake) -> None:
    """Without GPM the clock is known and the witness is not."""
    observer = Observer(Gathered(ranks=1), lambda: PEAKS, Looks("GPU-00009"))
    observer.look(0)
    window, _ = Windows().add(step("bfloat16"))
    found = observer.signals(window, sums(window.steps))
    assert (found.clock_ratio, found.witness) == (pytest.approx(1755 / 1800), None)
    observer.close()
    assert fake.sessions == 0
