"""What waits for a collector is bounded, and the least valuable goes first."""

from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.export.outbox import Outbox, Request


def test_order():
    """What sums are made of is sent before details, each in its order."""
    box = Outbox()
    for body, essential in ((b"a", False), (b"b", True), (b"c", False), (b"d", True)):
        box.put(Request(body, 1), essential=essential)
    sent = []
    while (request := box.peek()) is not None:
        sent.append(request.body)
        box.pop()
    assert sent == [b"b", b"d", b"a", b"c"]


def test_shedding():
    """A full box sheds the oldest details first, then the oldest of the rest, and says how many spans that were."""
    box = Outbox(max_bytes=30)
    assert box.put(Request(b"x" * 10, 32), essential=False) == 0
    assert box.put(Request(b"y" * 10, 7), essential=False) == 0
    assert box.put(Request(b"z" * 10, 2), essential=True) == 0
    assert box.put(Request(b"w" * 10, 2), essential=True) == 32
    assert box.put(Request(b"v" * 20, 2), essential=True) == 7 + 2
    assert box.clear() == 4
    assert box.peek() is None


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9), st.booleans()), max_size=40))
def test_ledger(puts):
    """Every span is sent, shed or cleared, once."""
    box = Outbox(max_bytes=100)
    lost = sum(box.put(Request(b"x" * size, spans), essential=essential) for size, spans, essential in puts)
    sent = box.pop() if box.peek() else 0
    assert lost + sent + box.clear() == sum(spans for _, spans, _ in puts)
