"""What a step asked for, in quantities that add up over the calls of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mfu_sdk.counting.batched import Batched
from mfu_sdk.records import CountSource

# The least sure source of a sum's parts names the sum; "measured" tops all, since its time is not representative.
_LEAST_SURE: tuple[CountSource, ...] = ("cached", "predicted", "sampled", "measured")


@dataclass(frozen=True, slots=True)
class Demand:
    """FLOPs, bytes and roofline time of one or many pieces of work, on one run's devices.

    `expected_s` is the roofline time of the counted operators, None where a rate for it is missing; `interval_s` are
    the least and most that it may be, None where either is not known. `batched` is the roofline at other batches, of
    one call alone and where somebody asks for it; sums and shares have none.
    `products_excess_s` is what the bytes of operators with FLOPs take longer than these, None where it is not known.
    """

    model_flops: int
    hardware_flops: int
    by_dtype: Mapping[str, int]
    attention_flops_exact: int
    attention_flops_full: int
    bytes_moved: int
    priced_bytes: float
    expected_s: float | None
    source: CountSource
    batched: Batched | None = None
    products_excess_s: float | None = None
    interval_s: tuple[float, float] | None = None

    def __add__(self, other: Demand) -> Demand:
        by_dtype = dict(self.by_dtype)
        for dtype, flops in other.by_dtype.items():
            by_dtype[dtype] = by_dtype.get(dtype, 0) + flops
        source = _LEAST_SURE[max(map(_LEAST_SURE.index, (self.source, other.source)))]
        mine, others = self.interval_s, other.interval_s
        both_expected = self.expected_s is not None and other.expected_s is not None
        return Demand(
            self.model_flops + other.model_flops,
            self.hardware_flops + other.hardware_flops,
            by_dtype,
            self.attention_flops_exact + other.attention_flops_exact,
            self.attention_flops_full + other.attention_flops_full,
            self.bytes_moved + other.bytes_moved,
            self.priced_bytes + other.priced_bytes,
            (self.expected_s or 0.0) + (other.expected_s or 0.0) if both_expected else None,
            source,
            products_excess_s=_both(self.products_excess_s, other.products_excess_s),
            interval_s=None if mine is None or others is None else (mine[0] + others[0], mine[1] + others[1]),
        )

    def times(self, number: int) -> Demand:
        """The demand of `number` such pieces of work."""
        return self._scaled(lambda value: value * number, number)

    def shared(self, number: int) -> Demand:
        """One of `number` equal parts; FLOPs are rounded down."""
        return self._scaled(lambda value: value // number, 1 / number)

    def _scaled(self, flops: Callable[[int], int], factor: float) -> Demand:
        ends = self.interval_s
        return Demand(
            flops(self.model_flops),
            flops(self.hardware_flops),
            {dtype: flops(value) for dtype, value in self.by_dtype.items()},
            flops(self.attention_flops_exact),
            flops(self.attention_flops_full),
            flops(self.bytes_moved),
            self.priced_bytes * factor,
            None if self.expected_s is None else self.expected_s * factor,
            self.source,
            products_excess_s=None if self.products_excess_s is None else self.products_excess_s * factor,
            interval_s=None if ends is None else (ends[0] * factor, ends[1] * factor),
        )

    @classmethod
    def nothing(cls, dtype: str) -> Demand:
        """No work at all, to be held against the peak of `dtype`."""
        return cls(0, 0, {dtype: 0}, 0, 0, 0, 0.0, 0.0, "cached", products_excess_s=0.0, interval_s=(0.0, 0.0))


def _both(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
