"""Which formula prices which operator of torch, and which of its arguments the formula reads."""

from mfu_sdk.counting.pricing.price import Price
from mfu_sdk.counting.pricing.table import PRICES

__all__ = ["PRICES", "Price"]
