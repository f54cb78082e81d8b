"""Money to whole cents, so that what is printed adds up: the largest remainders take the cents that rounding leaves."""

from collections.abc import Sequence
from fractions import Fraction


def cents(amount: Fraction) -> int:
    """An amount of the currency in hundredths of it, halves to the even."""
    return round(amount * 100)


def apportioned(parts: Sequence[Fraction], total_cents: int | None = None) -> tuple[int, ...]:
    """Every part in cents, each within a cent of its amount, together `total_cents`: the rounded sum unless given.

    The method of largest remainders (Hamilton's): all are rounded down, and those that lost most get one back. A given
    total must be the rounded sum of the parts, which other cuts of the same amounts share.
    """
    total = cents(sum(parts, Fraction(0))) if total_cents is None else total_cents
    floors = [part * 100 // 1 for part in parts]
    left = total - sum(floors)
    by_loss = sorted(range(len(parts)), key=lambda i: (floors[i] - parts[i] * 100, i))
    step = 1 if left >= 0 else -1
    # Where the remainders alone round up past what is left, the least of them give a cent instead.
    for place in (by_loss if left >= 0 else by_loss[::-1])[: abs(left)]:
        floors[place] += step
    return tuple(int(part) for part in floors)
