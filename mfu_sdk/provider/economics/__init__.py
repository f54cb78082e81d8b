"""What a fleet's hours cost, brought and did: books and sums in, money out. Pure: no files, no clock, no store."""

from mfu_sdk.provider.economics.capacity import Capacity, capacity
from mfu_sdk.provider.economics.inputs import Held, Ledger, Losses, Owned, Used
from mfu_sdk.provider.economics.ledger import ledger
from mfu_sdk.provider.economics.pricing import Claim
from mfu_sdk.provider.economics.reckon import Economics, Outlook, reckon
from mfu_sdk.provider.economics.waterfall import STAGES, Waterfall, waterfall

__all__ = [
    "STAGES",
    "Capacity",
    "Claim",
    "Economics",
    "Held",
    "Ledger",
    "Losses",
    "Outlook",
    "Owned",
    "Used",
    "Waterfall",
    "capacity",
    "ledger",
    "reckon",
    "waterfall",
]
