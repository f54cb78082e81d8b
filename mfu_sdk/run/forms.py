"""Closed forms: what a call of new sizes costs, recovered from counted calls of other sizes.

FLOPs are polynomials in the sizes of a call (batch, sequence, cache, Σs² of packed lengths): at most square in each
and cubic in all, as B·S² of attention is. Counted calls of one structure are points on such a polynomial, and a call
of new sizes is predicted from them where three things hold, in exact arithmetic:

- the counts decide it: every polynomial of the kind that passes through them has one and the same value there, and
  still has when any one of them is left out, so that each count used was confirmed, and two more than decide it agree;
- it lies among them: in each size between the least and the greatest count that hang together by such confirmations,
  and on their grid, since chunks, tiles and paddings repeat and counts at their multiples do not see them;
- no count contradicts: where one does, the calls are cut along one size, as a sliding window cuts them, into few
  pieces of which each has to earn its trust alone.

A whole number that counts the steps (the index of a batch, which Lightning hands on through DDP) never lies between two
of them. Where `counters` may be among the numbers, and three counts that were alike in all else had another one each
and cost the same, it is no size from the least of them on, until a count says otherwise. A handler's numbers are
lengths, and lengths that are padded to blocks cost the same for a while.

A window's edge among four counts along a line is always seen: their third divided difference is then the value of a
B-spline, which is positive. What bends between two counts and bends back before the next nothing can see, nor chunks
where all counts lie alike to their edges; therefore counted steps go on checking what was predicted for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Final

from mfu_sdk.counting.batched import Between
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.sizes import Sizes, taken_apart

MOST_FAMILIES: Final = 256
"""Kinds of calls that are kept; of more, the one counted longest ago is forgotten."""
CONFIRMED: Final = 2
"""Counts beyond those that decide a polynomial which have to agree with it: five in all along a line."""
MOST_SAMPLES: Final = 40
"""Counted calls of one kind that are kept, the latest."""
MOST_MONOMIALS: Final = 20
"""Three sizes that vary have 17; more would want more counts than a run makes."""
MOST_PIECES: Final = 3
"""A window or two cut a polynomial; what falls into more pieces is none."""
MOST_WRONG: Final = 2
"""Predictions that counts refuted, after which a kind of call is not predicted again."""

Values = tuple[int, ...]


class Forms:
    """The closed forms of one run. Not thread-safe."""

    def __init__(self, *, counters: bool = False) -> None:
        self._counters = counters
        self._families: OrderedDict[Hashable, _Family] = OrderedDict()

    def learn(self, key: Hashable, demand: Demand) -> bool:
        """Add a counted call; `key` holds a signature, and sizes in it are what may vary.

        Returns whether a form that was trusted turned out wrong, so that earlier predictions no longer hold.
        """
        structure, sizes, squares, numbers = taken_apart(key)
        family = self._families.get(structure)
        if family is None:
            family = self._families[structure] = _Family(squares, numbers if self._counters else frozenset())
            if len(self._families) > MOST_FAMILIES:
                self._families.popitem(last=False)
        self._families.move_to_end(structure)
        return family.learn(sizes, demand)

    def predict(self, key: Hashable) -> Demand | None:
        """The demand of a call like counted ones but for its sizes, or None where no form is trusted for it."""
        structure, sizes, _, _ = taken_apart(key)
        family = self._families.get(structure)
        return None if family is None else family.predict(sizes)


class _Family:
    """Counted calls of one structure, and the forms that they support."""

    __slots__ = (
        "_chart",
        "_forms",
        "_idle",
        "_least",
        "_names",
        "_numbers",
        "_samples",
        "_squares",
        "_whole",
        "_wrong",
    )

    def __init__(self, squares: frozenset[int], numbers: frozenset[int]) -> None:
        self._squares = squares
        # Which sizes are whole numbers that were given as arguments; and which of these do not matter.
        self._numbers = numbers
        self._idle: frozenset[int] = frozenset()
        self._least: Sizes = ()
        self._samples: dict[Sizes, Demand] = {}
        self._chart: _Chart | None = None
        self._forms: list[_Form] = []
        self._names: tuple[str, ...] = ()
        # Whether one polynomial passes through all samples and is trusted.
        self._whole = False
        self._wrong = 0

    def learn(self, sizes: Sizes, demand: Demand) -> bool:
        expected = self._samples.get(sizes) or self.predict(sizes)
        if expected is not None and _same(expected, demand):
            # What a trusted form had right adds nothing to it.
            return False
        if expected is not None:
            # Not a matter of its sizes alone, or no longer: trust begins again from here.
            self._wrong += 1
            if self._idle:
                self._numbers = self._idle = frozenset()
            self._samples.clear()
        was_whole = self._whole
        self._samples[sizes] = demand
        if len(self._samples) > MOST_SAMPLES:
            del self._samples[next(iter(self._samples))]
        self._fit()
        return expected is not None or (was_whole and not self._whole)

    def predict(self, sizes: Sizes) -> Demand | None:
        if not self._forms or self._chart is None or (point := self._chart.point(self._kept(sizes))) is None:
            return None
        if any(sizes[i] < self._least[i] for i in self._idle):
            return None
        found = {values: form for form in self._forms if (values := form.at(point)) is not None}
        if len(found) != 1:
            return None
        [(values, form)] = found.items()
        return form.demand(values, self._names)

    def _fit(self) -> None:
        self._forms, self._whole = [], False
        if self._wrong > MOST_WRONG or len(self._samples) <= CONFIRMED:
            return
        self._idle = self._without_effect()
        self._least = tuple(map(min, zip(*self._samples, strict=True)))
        rows = [self._kept(sizes) for sizes in self._samples]
        squares = frozenset(index - sum(i < index for i in self._idle) for index in self._squares)
        self._chart = chart = _Chart(rows, squares)
        if len(chart.monomials) > MOST_MONOMIALS:
            return
        self._names = tuple(sorted({name for demand in self._samples.values() for name in demand.by_dtype}))
        samples = [
            _Sample(tuple(row[i] for i in chart.free), _values(demand, self._names), demand)
            for row, demand in zip(rows, self._samples.values(), strict=True)
        ]
        if (whole := _pieces(samples, chart.monomials, 1)) is not None:
            self._forms = whole
            self._whole = bool(whole)
            return
        for axis, upwards in product(range(len(chart.free)), (1, -1)):
            in_order = sorted(samples, key=lambda sample: upwards * sample.point[axis])
            forms = _pieces(in_order, chart.monomials, MOST_PIECES)
            if forms and sum(form.size for form in forms) > sum(form.size for form in self._forms):
                self._forms = forms

    def _kept(self, sizes: Sizes) -> Sizes:
        """The sizes that may matter."""
        return tuple(size for i, size in enumerate(sizes) if i not in self._idle) if self._idle else sizes

    def _without_effect(self) -> frozenset[int]:
        """The numbers that were others in counts that were alike in all else, and cost the same."""
        columns = list(zip(*self._samples, strict=True))
        varied = frozenset(i for i in self._numbers if len(set(columns[i])) > 1)
        alike: dict[Sizes, list[Demand]] = {}
        for sizes, demand in self._samples.items() if varied else ():
            alike.setdefault(tuple(size for i, size in enumerate(sizes) if i not in varied), []).append(demand)
        groups = alike.values()
        if any(not _same(group[0], each) for group in groups for each in group):
            return frozenset()
        return varied if any(len(group) > CONFIRMED for group in groups) else frozenset()


class _Chart:
    """Which sizes of a family's calls vary freely; the others are constant, or follow from these (mask = cache + new).

    Two columns of sizes that agree in all samples are one, since a cache brings the same sizes for every layer.
    """

    __slots__ = ("_alike", "_flat", "_kept", "free", "monomials")

    def __init__(self, rows: Sequence[Sizes], squares: frozenset[int]) -> None:
        first: dict[Sizes, int] = {}
        self._alike = [first.setdefault(column, index) for index, column in enumerate(zip(*rows, strict=True))]
        self._kept = sorted(set(first.values()))
        self._flat = _Echelon(1 + len(self._kept))
        for row in rows:
            self._flat.add([1, *(row[i] for i in self._kept)])
        self.free = [self._kept[pivot - 1] for pivot, _ in self._flat.rows if pivot]
        self.monomials = _monomials(tuple(2 if i in squares else 1 for i in self.free), 2 if squares else 3)

    def point(self, sizes: Sizes) -> Sizes | None:
        """The free ones of `sizes`, None where the others do not follow from them as they did in every sample."""
        if any(size != sizes[other] for size, other in zip(sizes, self._alike, strict=True)):
            return None
        if any(self._flat.reduced([1, *(sizes[i] for i in self._kept)])):
            return None
        return tuple(sizes[i] for i in self.free)


class _Sample:
    """A counted call: where it lies, and what it cost."""

    __slots__ = ("demand", "point", "values")

    def __init__(self, point: Sizes, values: Values, demand: Demand) -> None:
        self.point = point
        self.values = values
        self.demand = demand


class _Fit:
    """Samples through all of which one polynomial passes."""

    def __init__(self, monomials: Sequence[Sizes]) -> None:
        self._monomials = monomials
        self._echelon = _Echelon(len(monomials))
        self._samples: list[_Sample] = []
        # Of each sample that followed from earlier ones: itself and those.
        self._circuits: list[set[int]] = []

    def add(self, sample: _Sample) -> bool:
        """Add a sample; False, and no change, where no polynomial passes through it and the others."""
        own = [0] * MOST_SAMPLES
        own[len(self._samples)] = 1
        wide = len(self._monomials) + len(sample.values)
        rest = self._echelon.add([*_row(sample.point, self._monomials), *sample.values, *own])
        if rest is not None:
            if any(rest[:wide]):
                return False
            self._circuits.append({i for i, share in enumerate(rest[wide:]) if share})
        self._samples.append(sample)
        return True

    def forms(self) -> Iterator[_Form]:
        """What the samples support: those that confirm one another, directly or through others, make a form."""
        groups: list[tuple[set[int], int]] = []
        for circuit in self._circuits:
            apart = [group for group in groups if not group[0] & circuit]
            met = [group for group in groups if group[0] & circuit]
            merged = circuit.union(*(members for members, _ in met))
            groups = [*apart, (merged, 1 + sum(confirmed for _, confirmed in met))]
        for members, confirmed in groups:
            if confirmed >= CONFIRMED:
                yield _Form([self._samples[i] for i in sorted(members)], self._monomials)


class _Form:
    """A polynomial that counted calls agree on, for calls that lie among them."""

    __slots__ = ("_costs", "_echelon", "_grid", "_high", "_low", "_monomials", "size")

    def __init__(self, samples: Sequence[_Sample], monomials: Sequence[Sizes]) -> None:
        self._monomials = monomials
        self._echelon = _Echelon(len(monomials))
        for sample in samples:
            self._echelon.add([*_row(sample.point, monomials), *sample.values, 0])
        columns = list(zip(*(sample.point for sample in samples), strict=True))
        self._low, self._high = [min(each) for each in columns], [max(each) for each in columns]
        self._grid = [gcd(*(size - low for size in each)) for each, low in zip(columns, self._low, strict=True)]
        self._costs = sorted((sample.demand for sample in samples), key=lambda demand: demand.hardware_flops)
        self.size = len(samples)

    def at(self, point: Sizes) -> Values | None:
        """The values at `point`, None where they are not decided, or not whole."""
        for size, low, high, grid in zip(point, self._low, self._high, self._grid, strict=True):
            if not low <= size <= high or (grid and (size - low) % grid):
                return None
        wide = len(self._echelon.rows[0][1]) - len(self._monomials) - 1
        rest = self._echelon.reduced([*_row(point, self._monomials), *[0] * wide, 1])
        *values, scale = rest[len(self._monomials) :]
        if any(rest[: len(self._monomials)]) or any(value % scale for value in values):
            return None
        found = tuple(-value // scale for value in values)
        return found if min(found) >= 0 else None

    def demand(self, values: Values, names: Sequence[str]) -> Demand:
        """The predicted FLOPs; bytes and roofline time, which bend, in between those of calls of about the same FLOPs.

        Bytes say how intense the work is and how much of it was priced; what a count has of them depends on where in
        the step it began.
        """
        model, hardware, exact, full, *split = values
        above = bisect_left(self._costs, hardware, key=lambda demand: demand.hardware_flops)
        near, far = self._costs[max(0, above - 1)], self._costs[min(above, len(self._costs) - 1)]
        apart = far.hardware_flops - near.hardware_flops
        share = (hardware - near.hardware_flops) / apart if apart else 0.0
        expected_s = interval_s = None
        if near.expected_s is not None and far.expected_s is not None:
            expected_s = near.expected_s + share * (far.expected_s - near.expected_s)
        if near.interval_s is not None and far.interval_s is not None:
            (near_low, near_high), (far_low, far_high) = near.interval_s, far.interval_s
            interval_s = near_low + share * (far_low - near_low), near_high + share * (far_high - near_high)
        moved = round(near.bytes_moved + share * (far.bytes_moved - near.bytes_moved))
        priced = min(each.priced_bytes / each.bytes_moved if each.bytes_moved else 1.0 for each in (near, far))
        by_dtype = {name: flops for name, flops in zip(names, split, strict=True) if flops}
        excess_s = None
        if near.products_excess_s is not None and far.products_excess_s is not None:
            excess_s = near.products_excess_s + share * (far.products_excess_s - near.products_excess_s)
        batched = None if near.batched is None or far.batched is None else Between(near.batched, far.batched, share)
        return Demand(
            model, hardware, by_dtype, exact, full, moved, priced * moved, expected_s, "predicted", batched, excess_s,
            interval_s,
        )  # fmt: skip


class _Echelon:
    """Rows of whole numbers in echelon form: their first `decisive` columns decide, the others go along."""

    __slots__ = ("_decisive", "rows")

    def __init__(self, decisive: int) -> None:
        self._decisive = decisive
        self.rows: list[tuple[int, list[int]]] = []

    def reduced(self, row: list[int]) -> list[int]:
        """What is left of `row`, or of a multiple of it, without the rows: decisive columns are zero in their span."""
        for pivot, known in self.rows:
            if value := row[pivot]:
                scale = known[pivot]
                row = [scale * own - value * other for own, other in zip(row, known, strict=True)]
                if (divisor := gcd(*row)) > 1:
                    row = [each // divisor for each in row]
        return row

    def add(self, row: list[int]) -> list[int] | None:
        """Add a row, or return what is left of one that lies in the span of the others already."""
        row = self.reduced(row)
        for pivot in range(self._decisive):
            if row[pivot]:
                self.rows.append((pivot, row))
                return None
        return row


def _pieces(samples: Iterable[_Sample], monomials: Sequence[Sizes], most: int) -> list[_Form] | None:
    """The forms of `samples`, cut in their order wherever the next contradicts; None for more than `most` pieces."""
    fits = [_Fit(monomials)]
    for sample in samples:
        if not fits[-1].add(sample):
            if len(fits) == most:
                return None
            fits.append(_Fit(monomials))
            fits[-1].add(sample)
    return [form for fit in fits for form in fit.forms()]


@lru_cache(maxsize=64)
def _monomials(weights: tuple[int, ...], most: int) -> list[Sizes]:
    """The exponents of each monomial: at most 2 in each size, at most `most` in all, where Σs² weighs as a square."""
    powers = product(range(3), repeat=len(weights))
    return [each for each in powers if sum(p * w for p, w in zip(each, weights, strict=True)) <= most]


def _row(point: Sizes, monomials: Sequence[Sizes]) -> Iterator[int]:
    return (prod(map(pow, point, powers)) for powers in monomials)


def _values(demand: Demand, names: Sequence[str]) -> Values:
    """The FLOPs of a demand, in one order; those of dtypes that it has none of are zero."""
    split = (demand.by_dtype.get(name, 0) for name in names)
    totals = demand.model_flops, demand.hardware_flops, demand.attention_flops_exact, demand.attention_flops_full
    return *totals, *split


def _same(one: Demand, other: Demand) -> bool:
    names = sorted({*one.by_dtype, *other.by_dtype})
    return _values(one, names) == _values(other, names)
