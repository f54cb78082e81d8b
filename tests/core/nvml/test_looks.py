"""Looks at a device through the real nvidia-ml-py: clocks, what holds them back, and the device's own witness."""

import pytest

from mfu_sdk.peak.looks import Look, Looks, Seen, seen

from .conftest import WHOLE, Fake, needs_gcc

pytestmark = needs_gcc

S = 10**9
NOTHING = Seen(None, None, None)


def test_an_interval(fake: Fake) -> None:
    """Clocks are averaged, a reason that lasts is told, and the tensor pipes' share is weighted by time."""
    fake.set(0, WHOLE, gpm=1, cycles=0, busy5=0, sm=1980, events=0)
    looks = Looks("GPU-00009")
    looks.look(100 * S)
    fake.set(0, WHOLE, cycles=1000, busy5=500, sm=1485, events=0x4 | 0x20)
    looks.look(101 * S)
    # A moment later: nobody is asked.
    calls = fake.calls
    looks.look(101 * S + S // 2)
    assert fake.calls == calls
    fake.set(0, WHOLE, cycles=4000, busy5=3200, sm=1485)
    looks.look(104 * S)
    # 0.5 in one second and 0.9 in three.
    assert looks.between(100 * S, 104 * S) == Seen(
        1650.0, ("software power cap", "software thermal slowdown"), pytest.approx(0.8)
    )
    assert looks.between(103 * S, 104 * S) == Seen(
        1485.0, ("software power cap", "software thermal slowdown"), pytest.approx(0.9)
    )
    assert looks.between(106 * S, 120 * S) == NOTHING
    looks.close()
    looks.close()
    looks.look(130 * S)
    assert (fake.sessions, fake.samples) == (0, 0)


def test_an_idle_device(fake: Fake) -> None:
    """Its clock is no clock of the work, and that it idles is no reason; its pipes were idle, which counts."""
    fake.set(0, WHOLE, gpm=1, cycles=0, busy5=0, sm=345, events=0x1)
    looks = Looks("GPU-00009")
    looks.look(0)
    fake.set(0, WHOLE, cycles=100)
    looks.look(S)
    assert looks.between(0, S) == Seen(None, None, 0.0)
    fake.set(0, WHOLE, cycles=200, busy5=100, sm=1980, events=0)
    looks.look(2 * S)
    assert looks.between(0, 2 * S) == Seen(1980.0, (), 0.5)
    looks.close()


def test_a_slice(fake: Fake) -> None:
    """Clocks are its GPU's, the witness is its own."""
    fake.mig(0, 16, 16)
    fake.set(0, WHOLE, gpm=1)
    for index, busy in ((0, 80), (1, 10)):
        fake.set(0, index, cycles=0, busy5=0)
        looks = Looks(f"MIG-0000{index}")
        looks.look(0)
        fake.set(0, index, cycles=100, busy5=busy)
        looks.look(S)
        assert looks.between(0, S) == Seen(1755.0, ("software power cap",), busy / 100)
        looks.close()


@pytest.mark.parametrize("fields", [{"sm": -3, "events": -3}, {"sm": -15, "events": -4}], ids=["unknown", "lost"])
def test_what_is_not_told(fake: Fake, fields: dict[str, int]) -> None:
    """A GPU that does not say its clock, and one that fell off the bus: nothing is known, and nothing fails."""
    fake.set(0, WHOLE, **fields)
    looks = Looks("GPU-00009")
    for second in range(3):
        looks.look(second * S)
    assert looks.between(0, 3 * S) == NOTHING
    looks.close()


def test_no_driver(fake: Fake) -> None:
    """It is asked once, and never again."""
    fake.library.fake_broken(9)
    looks = Looks("GPU-00009")
    looks.look(0)
    fake.library.fake_broken(0)
    looks.look(S)
    assert looks.between(0, S) == NOTHING
    elsewhere = Looks("GPU-elsewhere")
    elsewhere.look(0)
    elsewhere.look(S)
    assert elsewhere.between(0, S) == NOTHING
    elsewhere.close()
    looks.close()
    assert fake.sessions == 0


def test_a_blip() -> None:
    """A reason in one look of eleven held nothing back; in one of ten it did."""
    free = [Look(second, 1980.0, (), None, 1.0) for second in range(10)]
    held = Look(10, 1000.0, ("power brake",), None, 1.0)
    assert seen([*free, held]).reasons == ()
    assert seen([*free[1:], held]) == Seen(1882.0, ("power brake",), None)
    assert seen([]) == NOTHING


def test_a_clock_that_is_set_back(fake: Fake) -> None:
    """Looks go on, and an interval of less than no time weighs nothing."""
    fake.set(0, WHOLE, gpm=1, cycles=0, busy5=0)
    looks = Looks("GPU-00009")
    looks.look(100 * S)
    fake.set(0, WHOLE, cycles=100, busy5=50)
    looks.look(10 * S)
    assert looks.between(0, 20 * S) == Seen(1755.0, ("software power cap",), None)
    looks.close()
