"""Every price of torch's own operators."""

from collections.abc import Mapping
from typing import Final

from mfu_sdk.counting import fused_attention
from mfu_sdk.counting.pricing import convolutions, linalg, products, quantized, recurrences, sparse, spectral
from mfu_sdk.counting.pricing.price import Price

PRICES: Final[Mapping[str, Price]] = {
    **products.PRICES,
    **sparse.PRICES,
    **quantized.PRICES,
    **convolutions.PRICES,
    **recurrences.PRICES,
    **linalg.PRICES,
    **spectral.PRICES,
    **{
        name: Price(entry.formula, entry.operand, words=entry.words, source=entry.source)
        for name, entry in fused_attention.FORMULAS.items()
    },
}
"""Prices by qualified name, without overload and without the trailing underscore of in-place forms."""
