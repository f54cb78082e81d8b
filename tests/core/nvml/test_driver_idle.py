"""How long a GPU stood still in steps, by what its driver says of it: by hand, and by a driver in a thread."""

import threading

import pytest

from mfu_sdk.run.driver_idle import MOST_S, DriverIdle

from .conftest import H100, WHOLE, Fake, needs_gcc

pytestmark = needs_gcc


class Books:
    """A run's: a clock, the seconds of its steps and of those apart, and what is told of them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.passed_s = 7.0
        self.apart_s = 3.0
        self.told: list[tuple[float, float]] = []
        self.idle = DriverIdle(
            "GPU-00009",
            lambda: (self.passed_s, self.apart_s),
            lambda *seconds: self.told.append(seconds),
            lambda: self.now_s,
        )

    def look(self, share: float, *, after_s: float = 1.0, passed_s: float = 1.0) -> None:
        self.now_s += after_s
        self.passed_s += passed_s
        self.idle.look(share)


@pytest.fixture
def books() -> Books:
    return Books()


def test_what_no_kernel_took(books: Books) -> None:
    """Steps one behind the other: what the driver does not see busy."""
    books.look(0.25)
    books.look(1.0)
    assert books.told == [(0.75, 1.0), (0.0, 1.0)]


def test_what_passes_between_steps(books: Books) -> None:
    """Half of the time is no step's: the device is taken to be idle there, and busy for 0.25 of the other 0.5 s."""
    books.look(0.25, passed_s=0.5)
    # Busy for longer than there were steps: what ran elsewhere is charged to them, and they stood still for none.
    books.look(0.75, passed_s=0.5)
    assert books.told == [(0.25, 0.5), (0.0, 0.5)]


def test_a_step_longer_than_a_second(books: Books) -> None:
    """What was seen while it ran is told when it has ended, all of it."""
    for share in (0.5, 0.0, 1.0):
        books.look(share, passed_s=0.0)
    books.look(0.5, passed_s=4.0)
    assert books.told == [(2.0, 4.0)]


def test_a_pause(books: Books) -> None:
    """Of a minute without a step nothing is told, however idle the device was, and of a second more nothing either."""
    for _ in range(int(MOST_S)):
        books.look(0.0, passed_s=0.0)
    books.look(1.0)
    assert books.told == [(0.0, 1.0)]


def test_steps_apart(books: Books) -> None:
    """While the first one compiled the device stood still, which is no step's of those that count."""
    books.apart_s += 30.0
    books.look(0.1, after_s=30.0, passed_s=30.0)
    assert books.told == []
    # Of quick steps one is counted each second, for some hundredths of it.
    books.apart_s += 0.05
    books.look(0.9)
    books.apart_s += 0.06
    books.look(0.1)
    assert books.told == [(pytest.approx(0.1), 1.0)]


def test_steps_that_are_told_late(books: Books) -> None:
    """More seconds of steps than have passed: the device's past is told of as much as was looked at."""
    books.look(0.5, passed_s=3.0)
    assert books.told == [(0.5, 1.0)]


def test_a_driver_that_is_asked(fake: Fake) -> None:
    """In a thread of its own, until it is closed, or the driver tells nothing any more; the session ends with it."""
    passed_s, told, both = [0.0], list[tuple[float, float]](), threading.Event()

    def passed() -> tuple[float, float]:
        passed_s[0] += 1.0
        return passed_s[0], 0.0

    def tell(idle_s: float, step_s: float) -> None:
        told.append((idle_s, step_s))
        if len(told) == 2:
            both.set()

    fake.device(0, WHOLE, "NVIDIA H100 80GB HBM3", **{**H100, "utilization": 25})
    idle = DriverIdle("GPU-00009", passed, tell, every_s=0.001)
    idle.start()
    assert both.wait(60)
    idle.close()
    assert idle._thread is not None
    idle._thread.join(60)
    assert all(idle_s == pytest.approx(0.75 * step_s) for idle_s, step_s in told)
    assert fake.sessions == 0
    # Not supported, as a slice's is: one question, and no thread is left.
    fake.set(0, WHOLE, utilization=-3)
    del told[:]
    DriverIdle("GPU-00009", passed, tell, every_s=0.001)._run()
    fake.mig(0, 16)
    DriverIdle("MIG-00000", passed, tell, every_s=0.001)._run()
    DriverIdle("GPU-elsewhere", passed, tell, every_s=0.001)._run()
    fake.library.fake_broken(9)
    DriverIdle("GPU-00009", passed, tell, every_s=0.001)._run()
    assert told == []
    assert fake.sessions == 0
