"""The provider's own books: what it asks, what it pays, what it owns and who holds it, from files it keeps."""

from mfu_sdk.provider.books.holdings import Held, Holdings, Hours
from mfu_sdk.provider.books.inventory import (
    Allocation,
    Inventory,
    MigLayout,
    Node,
    QueueSample,
    load_inventory,
)
from mfu_sdk.provider.books.prices import CONTRACTS, Cost, CostBook, Price, PriceBook, load_prices
from mfu_sdk.provider.books.watch import Books, Snapshot

__all__ = [
    "CONTRACTS",
    "Allocation",
    "Books",
    "Cost",
    "CostBook",
    "Held",
    "Holdings",
    "Hours",
    "Inventory",
    "MigLayout",
    "Node",
    "Price",
    "PriceBook",
    "QueueSample",
    "Snapshot",
    "load_inventory",
    "load_prices",
]
