"""Closed forms: what a call of a new length costs, recovered from counted calls of other lengths.

Calls that differ in one quantity only (the sequence, the cache, the batch) have sizes that lie on a line: base +
t · direction, with a whole t. Along such a line FLOPs are polynomials in t of degree two at most, attention being the
quadratic part, as long as no kernel or window changes its mind in between. Three counted calls give the
polynomial; it is trusted only once every other counted call of the line, one at the least, agrees exactly, and only
between the shortest and the longest that were counted: a form fitted below a sliding window is wrong above it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd
from typing import Any

import torch

from mfu_sdk.run.demand import Demand

MOST_FAMILIES, MOST_LINES, MOST_LOOSE = 256, 16, 16
"""What is kept: kinds of calls, lines of each, and calls that lie on no line yet."""

Sizes = tuple[int, ...]


class Forms:
    """The closed forms of one run. Not thread-safe."""

    def __init__(self) -> None:
        self._families: OrderedDict[Hashable, _Family] = OrderedDict()

    def learn(self, key: Hashable, demand: Demand) -> bool:
        """Add a counted call; `key` holds a signature, and sizes in it are what may vary.

        Returns whether a form that was trusted turned out wrong, so that earlier predictions no longer hold.
        """
        structure, sizes = _taken_apart(key)
        family = self._families.setdefault(structure, _Family())
        self._families.move_to_end(structure)
        if len(self._families) > MOST_FAMILIES:
            self._families.popitem(last=False)
        return family.learn(sizes, demand)

    def predict(self, key: Hashable) -> Demand | None:
        """The demand of a call like counted ones but for its length, or None where no form is trusted for it."""
        structure, sizes = _taken_apart(key)
        family = self._families.get(structure)
        return None if family is None else family.predict(sizes)


@dataclass(slots=True)
class _Line:
    """Counted calls whose sizes are base + t · direction, by t, and the polynomials through them once trusted."""

    base: Sizes
    direction: Sizes
    samples: dict[int, Demand] = field(default_factory=dict)
    knots: tuple[int, int, int] | None = None

    def position(self, sizes: Sizes) -> int | None:
        """The t of `sizes`, None where they do not lie on the line."""
        t: int | None = None
        for size, start, step in zip(sizes, self.base, self.direction, strict=True):
            if step == 0:
                if size != start:
                    return None
                continue
            here, rest = divmod(size - start, step)
            if rest or (t is not None and here != t):
                return None
            t = here
        return t

    def learn(self, t: int, demand: Demand) -> bool:
        """Add a sample, and see anew whether one polynomial goes through all; returns whether it no longer does."""
        trusted = self.knots is not None
        self.samples[t] = demand
        self.knots = None
        order = sorted(self.samples)
        if len(order) < 4:
            return False
        knots = (order[0], order[len(order) // 2], order[-1])
        exact = (_values(self.samples[each]) == self._at(each, knots) for each in order if each not in knots)
        if all(exact):
            self.knots = knots
        return trusted and self.knots is None

    def predict(self, t: int) -> Demand | None:
        """The demand at `t`, between the counted ends."""
        if self.knots is None or not self.knots[0] <= t <= self.knots[2]:
            return None
        values = self._at(t, self.knots)
        if values is None:
            return None
        below = max(each for each in self.samples if each <= t)
        above = min(each for each in self.samples if each >= t)
        near, far = self.samples[below], self.samples[above]
        share = (t - below) / (above - below) if above > below else 0.0
        expected_s = None
        if near.expected_s is not None and far.expected_s is not None:
            # A roofline bends where its binding resource changes, so it is only interpolated between neighbours.
            expected_s = near.expected_s + share * (far.expected_s - near.expected_s)
        model, hardware, exact, full, *split = values
        # Bytes say how intense the work is and how much of it was priced; what a count has of them depends on where in
        # the step it began, so they are interpolated too.
        moved = round(near.bytes_moved + share * (far.bytes_moved - near.bytes_moved))
        priced = min(each.priced_bytes / each.bytes_moved if each.bytes_moved else 1.0 for each in (near, far))
        by_dtype = dict(zip(sorted(near.by_dtype), split, strict=True))
        return Demand(model, hardware, by_dtype, exact, full, moved, priced * moved, expected_s, "predicted")

    def _at(self, t: int, knots: tuple[int, int, int]) -> list[int] | None:
        """Lagrange's polynomial through the samples at `knots`, at `t`; None where a value is not whole."""
        weights = [_weight(t, each, [other for other in knots if other != each]) for each in knots]
        rows = [_values(self.samples[each]) for each in knots]
        if len({len(row) for row in rows}) > 1:
            return None
        values = [
            sum((w * v for w, v in zip(weights, column, strict=True)), Fraction(0))
            for column in zip(*rows, strict=True)
        ]
        return [int(value) for value in values] if all(value.denominator == 1 for value in values) else None


@dataclass(slots=True)
class _Family:
    """Calls of one structure: the lines that they form, and those on none."""

    lines: list[_Line] = field(default_factory=list)
    loose: list[tuple[Sizes, Demand]] = field(default_factory=list)

    def learn(self, sizes: Sizes, demand: Demand) -> bool:
        on_line = wrong = False
        for line in self.lines:
            if (t := line.position(sizes)) is not None:
                wrong |= line.learn(t, demand)
                on_line = True
        if on_line:
            return wrong
        for other, known in self.loose:
            if (direction := _direction(other, sizes)) is not None:
                line = _Line(other, direction)
                line.learn(0, known)
                t = line.position(sizes)
                assert t is not None
                line.learn(t, demand)
                self.lines = [*self.lines[-(MOST_LINES - 1) :], line]
        self.loose = [*self.loose[-(MOST_LOOSE - 1) :], (sizes, demand)]
        return False

    def predict(self, sizes: Sizes) -> Demand | None:
        for line in self.lines:
            if (t := line.position(sizes)) is not None and (found := line.predict(t)) is not None:
                return found
        return None


def _direction(start: Sizes, end: Sizes) -> Sizes | None:
    """The least whole step from `start` towards `end`; None where they are the same."""
    difference = [b - a for a, b in zip(start, end, strict=True)]
    divisor = gcd(*difference) if difference else 0
    return tuple(each // divisor for each in difference) if divisor else None


def _weight(t: int, own: int, others: Sequence[int]) -> Fraction:
    weight = Fraction(1)
    for other in others:
        weight *= Fraction(t - other, own - other)
    return weight


def _values(demand: Demand) -> list[int]:
    """The FLOPs of a demand, in one order; the dtypes by name."""
    return [
        demand.model_flops,
        demand.hardware_flops,
        demand.attention_flops_exact,
        demand.attention_flops_full,
        *(demand.by_dtype[dtype] for dtype in sorted(demand.by_dtype)),
    ]


def _taken_apart(key: Hashable) -> tuple[Hashable, Sizes]:
    """What of a signature is structure, and the sizes in it: of tensors, and whole numbers given as arguments."""
    sizes: list[int] = []
    return _structure(key, sizes), tuple(sizes)


def _structure(part: Any, sizes: list[int]) -> Hashable:
    if isinstance(part, torch.Size):
        sizes.extend(part)
        return "size", len(part)
    if isinstance(part, tuple):
        # `plan.signature` gives an argument that is a whole number as (int, its value).
        if len(part) == 2 and part[0] is int:
            sizes.append(part[1])
            return "whole"
        return tuple(_each(part, sizes))
    return part if isinstance(part, Hashable) else repr(part)


def _each(parts: tuple[Any, ...], sizes: list[int]) -> Iterator[Hashable]:
    for part in parts:
        yield _structure(part, sizes)
