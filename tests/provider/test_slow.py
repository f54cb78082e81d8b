"""What is kept while its range moves on a little: for how long, and for whom."""

import itertools

from mfu_sdk.provider.books import Holdings, Inventory
from mfu_sdk.provider.pages.slow import Slow
from mfu_sdk.provider.rollup import Range

DAY = 86_400 * 10**9
MINUTE = 60 * 10**9


class Clock:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.now = 100 * DAY

    def __call__(self) -> int:
        return self.now

    def last(self, length: int) -> Range:
        """The range of that length that ends now."""
        return Range(self.now - length, self.now)


def test_kept_for_ten_minutes_of_a_day() -> None:
    """A day's is made anew after ten minutes, a quarter of an hour's after a 144th of that."""
    clock, numbers = Clock(), itertools.count()
    slow = Slow[int](clock)
    for length, fresh in ((DAY, 10 * MINUTE), (7 * DAY, 10 * MINUTE), (DAY // 96, 10 * MINUTE // 96)):
        first = slow.get(None, clock.last(length), None, lambda: next(numbers))
        clock.now += fresh
        assert slow.get(None, clock.last(length), None, lambda: next(numbers)) == first
        clock.now += 1
        assert slow.get(None, clock.last(length), None, lambda: next(numbers)) == first + 1


def test_age_counts_where_the_range_stands() -> None:
    """A range that is over is made anew as well: spans may come late."""
    clock, numbers = Clock(), itertools.count()
    slow, over = Slow[int](clock), Range(90 * DAY, 91 * DAY)
    assert [slow.get(None, over, None, lambda: next(numbers)) for _ in range(2)] == [0, 0]
    clock.now += 10 * MINUTE + 1
    assert slow.get(None, over, None, lambda: next(numbers)) == 1


def test_readers_and_books_are_apart() -> None:
    """What was made for one reader, or by another inventory, or of an earlier range, is shown to nobody else."""
    clock, numbers = Clock(), itertools.count()
    slow, day = Slow[int](clock), clock.last(DAY)
    one, two = (Holdings(Inventory(nodes=(), allocations=(), mig=(), queue=())) for _ in range(2))
    found = [
        slow.get(reader, span, held, lambda: next(numbers))
        for reader, span, held in (
            (None, day, one), ("acme", day, one), ("initech", day, one), (None, day, two),
            (None, Range(day.since_unix_ns - DAY, day.until_unix_ns - DAY), two), ("acme", day, one),
        )
    ]  # fmt: skip
    assert found == [0, 1, 2, 3, 4, 1]
