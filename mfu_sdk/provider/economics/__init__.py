"""What a fleet's hours cost, brought and did: books and sums in, money out. Pure: no files, no clock, no store."""

from mfu_sdk.provider.economics.assess import Assessment, assess
from mfu_sdk.provider.economics.capacity import Capacity, capacity
from mfu_sdk.provider.economics.focus import focus_csv
from mfu_sdk.provider.economics.inputs import Held, Ledger, Losses, Owned, Used
from mfu_sdk.provider.economics.ledger import ledger
from mfu_sdk.provider.economics.pricing import Claim, calls, tiers
from mfu_sdk.provider.economics.reckon import Economics, Outlook, Stage, reckon, stages
from mfu_sdk.provider.economics.waterfall import STAGES, Waterfall, waterfall

__all__ = [
    "STAGES",
    "Assessment",
    "Capacity",
    "Claim",
    "Economics",
    "Held",
    "Ledger",
    "Losses",
    "Outlook",
    "Owned",
    "Stage",
    "Used",
    "Waterfall",
    "assess",
    "calls",
    "capacity",
    "focus_csv",
    "ledger",
    "reckon",
    "stages",
    "tiers",
    "waterfall",
]
