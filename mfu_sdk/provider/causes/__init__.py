"""Why a workload is low: evidence from the store, rules on it, findings with their loss and a remedy."""

from mfu_sdk.provider.causes.accounting import compared
from mfu_sdk.provider.causes.evidence import Drift, Earlier, Evidence, Smaller
from mfu_sdk.provider.causes.finding import CAUSES, MATERIAL_LOSS, UNKNOWN_SHORTFALL, Cause, Finding
from mfu_sdk.provider.causes.gather import Unit
from mfu_sdk.provider.causes.judge import findings, judge
from mfu_sdk.provider.causes.read import evidence
from mfu_sdk.provider.causes.systemic import Systemic, systemic
from mfu_sdk.provider.causes.testimony import testimony

__all__ = [
    "CAUSES",
    "MATERIAL_LOSS",
    "UNKNOWN_SHORTFALL",
    "Cause",
    "Drift",
    "Earlier",
    "Evidence",
    "Finding",
    "Smaller",
    "Systemic",
    "Unit",
    "compared",
    "evidence",
    "findings",
    "judge",
    "systemic",
    "testimony",
]
