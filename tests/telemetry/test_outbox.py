"""What waits for a collector is bounded, and the least valuable goes first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.export.outbox import REQUEST_BYTES, REQUEST_SPANS, Chunk, Outbox


def emptied(box):
    """The requests that the box gives, all of them taken."""
    requests = []
    while (request := box.peek()) is not None:
        requests.append(request)
        box.pop(request)
    return requests


def test_order():
    """What sums are made of is sent before details, each in its order."""
    box = Outbox()
    for body, essential in ((b"a", False), (b"b", True), (b"c", False), (b"d", True)):
        assert box.put(Chunk(body, 1), essential=essential) == 0
    # Two requests: what sums are made of does not wait for the end of a long one.
    assert [request.body for request in emptied(box)] == [b"bd", b"ac"]


def test_spans_bound():
    """A request is filled to 512 spans and no further, and chunks stay whole."""
    box = Outbox()
    for _ in range(35):
        box.put(Chunk(b"x", 30), essential=False)
    assert [(request.chunks, request.spans) for request in emptied(box)] == [(17, 510), (17, 510), (1, 30)]
    box.put(Chunk(b"x", REQUEST_SPANS), essential=False)
    box.put(Chunk(b"x", 1), essential=False)
    assert [request.spans for request in emptied(box)] == [REQUEST_SPANS, 1]


def test_bytes_bound():
    """A request is filled to 1 MiB and no further; a chunk that is larger alone goes alone."""
    box = Outbox()
    half = REQUEST_BYTES // 2
    for size in (half, half, 1, REQUEST_BYTES + 1, 1):
        box.put(Chunk(b"x" * size, 1), essential=True)
    assert [len(request.body) for request in emptied(box)] == [REQUEST_BYTES, 1, REQUEST_BYTES + 1, 1]


def test_peek_again():
    """A request that was not taken is made again of the same bytes first, and of what has come since."""
    box = Outbox()
    box.put(Chunk(b"a", 2), essential=False)
    assert box.peek() == box.peek()
    box.put(Chunk(b"b", 3), essential=False)
    (request,) = emptied(box)
    assert (request.body, request.spans) == (b"ab", 5)


def test_shedding():
    """A full box sheds the oldest details first, then the oldest of the rest, and says how many spans that were."""
    box = Outbox(max_bytes=30)
    assert box.put(Chunk(b"x" * 10, 32), essential=False) == 0
    assert box.put(Chunk(b"y" * 10, 7), essential=False) == 0
    assert box.put(Chunk(b"z" * 10, 2), essential=True) == 0
    assert box.put(Chunk(b"w" * 10, 2), essential=True) == 32
    assert box.put(Chunk(b"v" * 20, 2), essential=True) == 7 + 2
    assert box.clear() == 4
    assert box.peek() is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9), st.booleans()), max_size=40))
def test_ledger(puts):
    """Every span is sent, shed or cleared, once."""
    box = Outbox(max_bytes=100)
    lost = sum(box.put(Chunk(b"x" * size, spans), essential=essential) for size, spans, essential in puts)
    request = box.peek()
    if request is not None:
        box.pop(request)
    sent = request.spans if request is not None else 0
    assert lost + sent + box.clear() == sum(spans for _, spans, _ in puts)
    assert box.peek() is None
