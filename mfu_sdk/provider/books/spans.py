"""Spans of time [since, until) in nanoseconds since 1970, None for an open end: clipped, and cut where rows change."""

import itertools
from collections.abc import Iterable

Span = tuple[int | None, int | None]


def clipped_ns(span: Span, since_unix_ns: int, until_unix_ns: int) -> tuple[int, int] | None:
    """The part of `span` within [since, until); None where they do not meet."""
    since = since_unix_ns if span[0] is None else max(span[0], since_unix_ns)
    until = until_unix_ns if span[1] is None else min(span[1], until_unix_ns)
    return (since, until) if since < until else None


def covers(span: Span, at_unix_ns: int) -> bool:
    """Whether the moment lies in `span`."""
    return (span[0] is None or span[0] <= at_unix_ns) and (span[1] is None or at_unix_ns < span[1])


def overlap(left: Span, right: Span) -> bool:
    """Whether two spans share a moment."""
    starts_before_end = right[1] is None or left[0] is None or left[0] < right[1]
    ends_after_start = left[1] is None or right[0] is None or right[0] < left[1]
    return starts_before_end and ends_after_start


def pieces(since_unix_ns: int, until_unix_ns: int, cuts: Iterable[int | None]) -> tuple[tuple[int, int], ...]:
    """[since, until) cut at those of `cuts` that lie inside of it; no pieces of an empty span."""
    if since_unix_ns >= until_unix_ns:
        return ()
    inside = sorted({cut for cut in cuts if cut is not None and since_unix_ns < cut < until_unix_ns})
    bounds = [since_unix_ns, *inside, until_unix_ns]
    return tuple(itertools.pairwise(bounds))
