"""What a tenant may send: attributes cut and counted, workloads beyond the limit together, spans a second."""

from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.provider.arrivals import AttributeLimits
from mfu_sdk.provider.receive.limits import OTHER, Cut, Rate, Workloads


def test_attributes_are_cut() -> None:
    """Attributes beyond the count go, names and values end at their lengths, and each cut is counted."""
    cut = Cut(AttributeLimits(count=2, name=3, value=5))
    assert cut.attributes({"abcd": "123456", "e": "1", "f": "left out"}) == {"abc": "12345", "e": "1"}
    assert cut.counts == {
        "attributes beyond 2 left out": 1,
        "names cut to 3 characters": 1,
        "values cut to 5 characters": 1,
    }


@given(st.dictionaries(st.text(max_size=6), st.text(max_size=8), max_size=6))
def test_cut_is_within_limits(found: dict[str, str]) -> None:
    """Whatever came, what is kept is within the limits; cut again, it is the same, and nothing is counted."""
    limits = AttributeLimits(count=3, name=4, value=5)
    kept = Cut(limits).attributes(found)
    assert len(kept) <= 3
    assert all(len(name) <= 4 and len(value) <= 5 for name, value in kept.items())
    again = Cut(limits)
    assert again.attributes(kept) == kept
    assert not again.counts


def test_workloads_have_a_limit() -> None:
    """The first names are a tenant's own and stay so; others are beyond, without taking room from another tenant."""
    workloads = Workloads(2, [("acme", "a")], lambda: 0.0)
    assert workloads.admit("acme", ["b", "", OTHER]) == frozenset()
    assert workloads.admit("acme", ["c", "a"]) == {"c"}
    assert workloads.admit("globex", ["c", "d"]) == frozenset()


def test_many_workloads_take_no_memory() -> None:
    """However many names come, no more than the limit are remembered."""
    workloads = Workloads(10, [], lambda: 0.0)
    beyond = workloads.admit("acme", map(str, range(100_000)))
    assert len(beyond) == 100_000 - 10
    assert len(workloads._seen["acme"]) == 10


def test_workloads_are_forgotten() -> None:
    """A name that was not seen for 30 days makes room, one that was seen meanwhile does not."""
    now = 0.0
    workloads = Workloads(2, [], lambda: now)
    workloads.admit("acme", ["old", "kept"])
    now = 29 * 86_400
    workloads.admit("acme", ["kept"])
    assert workloads.admit("acme", ["new"]) == {"new"}
    now = 30 * 86_400
    assert workloads.admit("acme", ["new"]) == frozenset()
    assert workloads.admit("acme", ["old"]) == {"old"}


def test_rate() -> None:
    """Ten seconds' worth at once; what was taken beyond is owed, and the answer says for how long."""
    now = 0.0
    rate = Rate(100.0, lambda: now)
    assert rate.wait_s("acme") == 0
    rate.spend("acme", 1_300)
    assert (rate.wait_s("acme"), rate.wait_s("globex")) == (3, 0)
    now = 2.0
    assert rate.wait_s("acme") == 1
    now = 3.01
    assert rate.wait_s("acme") == 0
    # A request of nothing costs one span: empty ones are not free.
    now = 1_000.0
    for _ in range(1_000):
        rate.spend("acme", 0)
    assert rate.wait_s("acme") == 1


def test_no_rate() -> None:
    """Without a limit nobody waits."""
    rate = Rate(None, lambda: 0.0)
    rate.spend("acme", 10**9)
    assert rate.wait_s("acme") == 0
