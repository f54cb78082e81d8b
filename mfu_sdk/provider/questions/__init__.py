"""The six questions of a fleet: what is low, where, at what scale, how full, since when, and is new hardware better."""

from mfu_sdk.provider.questions.answers import Questions, ask
from mfu_sdk.provider.questions.by_gpu_type import ByGpuType, FamilyByType, FamilyOnType, MatchedTypes
from mfu_sdk.provider.questions.by_scale import ByScale, ScaleFit, ScalePoint, Scaling
from mfu_sdk.provider.questions.low_workloads import LowWorkload, LowWorkloads
from mfu_sdk.provider.questions.new_hardware import Arrival, NewHardware
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.questions.statistics import Estimate
from mfu_sdk.provider.questions.trend import Change, Tested, TypeTrend
from mfu_sdk.provider.questions.under_batching import Filled, TenantFilled, UnderBatching

__all__ = [
    "Arrival",
    "ByGpuType",
    "ByScale",
    "Change",
    "Estimate",
    "FamilyByType",
    "FamilyOnType",
    "Filled",
    "LowWorkload",
    "LowWorkloads",
    "MatchedTypes",
    "NewHardware",
    "Picture",
    "Point",
    "Questions",
    "ScaleFit",
    "ScalePoint",
    "Scaling",
    "Series",
    "TenantFilled",
    "Tested",
    "TypeTrend",
    "UnderBatching",
    "ask",
]
