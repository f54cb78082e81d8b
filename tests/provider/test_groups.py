"""Requests stored together: each is answered, who has gone is left out, and what waits is stored before the end."""

import threading
from collections.abc import Callable, Sequence
from typing import cast

from mfu_sdk.errors import StoreError
from mfu_sdk.provider.arrivals import Arrival, Arrivals, Outcome, Stored
from mfu_sdk.provider.receive.groups import MAX_WAITING_BYTES, Groups

SOON_S = 120
"""Far more than anything here takes, on a busy machine too."""


class Place:
    """Stands in for a place of the engine: notes each group, and lets it go on when told to."""

    def __init__(self, came: threading.Semaphore | None = None) -> None:
        self.groups: list[list[bytes]] = []
        self.came = came or threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.error: Exception | None = None

    def add(
        self, arrivals: Sequence[Arrival], oldest: int, newest: int, after_reading: Callable[[], None]
    ) -> list[Outcome]:
        self.groups.append([arrival.body for arrival in arrivals])
        after_reading()
        self.came.release()
        assert self.go_on.acquire(timeout=SOON_S)
        if self.error is not None:
            raise self.error
        return [Stored(len(arrival.body), {}) for arrival in arrivals]


def groups(*places: Place) -> Groups:
    return Groups([cast(Arrivals, place) for place in places], lambda: (0, 1))


def test_what_waits_goes_together() -> None:
    """While one request is written others come; they are one group afterwards, each with its own answer."""
    came = threading.Semaphore(0)
    place, other = Place(came), Place(came)
    opened = groups(place, other)
    first = opened.submit(Arrival("acme", b"1"))
    assert first is not None
    assert came.acquire(timeout=SOON_S)
    busy = place if place.groups else other
    rest = [opened.submit(Arrival("acme", b"x" * size)) for size in (2, 3)]
    for each in (place, other):
        each.go_on.release(3)
    assert first.result(SOON_S) == Stored(1, {})
    assert [found.result(SOON_S) for found in rest if found is not None] == [Stored(2, {}), Stored(3, {})]
    opened.close()
    assert busy.groups[:1] == [[b"1"]]
    assert sorted(len(group) for group in place.groups + other.groups) == [1, 2]


def test_who_has_gone_is_left_out() -> None:
    """A request whose sender has gone before its turn is not stored, and harms nobody."""
    place = Place()
    opened = groups(place)
    first = opened.submit(Arrival("acme", b"1"))
    assert place.came.acquire(timeout=SOON_S)
    gone, kept = (opened.submit(Arrival("acme", body)) for body in (b"gone", b"kept"))
    assert first is not None
    assert gone is not None
    assert kept is not None
    assert gone.cancel()
    place.go_on.release(2)
    assert kept.result(SOON_S) == Stored(4, {})
    opened.close()
    assert place.groups == [[b"1"], [b"kept"]]


def test_an_error_is_answered() -> None:
    """Whatever goes wrong, whoever waits is told, and the next group is stored."""
    place = Place()
    opened = groups(place)
    place.error = ZeroDivisionError("of the engine")
    place.go_on.release()
    found = opened.submit(Arrival("acme", b"1"))
    assert found is not None
    assert isinstance(found.result(SOON_S), StoreError)
    place.error = None
    place.go_on.release()
    after = opened.submit(Arrival("acme", b"2"))
    assert after is not None
    assert after.result(SOON_S) == Stored(1, {})
    opened.close()


def test_closing() -> None:
    """What waits is stored before the end, and nothing is taken after it."""
    place = Place()
    opened = groups(place)
    waiting = [opened.submit(Arrival("acme", b"x")) for _ in range(3)]
    place.go_on.release(3)
    opened.close()
    assert [found.result(0) for found in waiting if found is not None] == [Stored(1, {})] * 3
    assert opened.submit(Arrival("acme", b"x")) is None


def test_no_more_than_may_wait() -> None:
    """Beyond what may wait a request is turned away; when the others are stored there is room again."""
    place = Place()
    opened = groups(place)
    first = opened.submit(Arrival("acme", b"1"))
    assert place.came.acquire(timeout=SOON_S)
    half = bytes(MAX_WAITING_BYTES // 2)
    waiting = [opened.submit(Arrival("acme", half)) for _ in range(3)]
    assert [found is None for found in waiting] == [False, False, True]
    place.go_on.release(4)
    assert first is not None
    assert waiting[1] is not None
    assert waiting[1].result(SOON_S) == Stored(len(half), {})
    after = opened.submit(Arrival("acme", half))
    assert after is not None
    assert after.result(SOON_S) == Stored(len(half), {})
    opened.close()
