"""NVIDIA's management library: what a GPU is, what it is doing, what holds it down, and what it is connected to."""

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.nvml.counters import Counters, Held, Interval, counters
from mfu_sdk.peak.nvml.gpu import Gpu, Health, Identity, Slice, State, events, open_gpu
from mfu_sdk.peak.nvml.links import Link, Path, Port, link, path_between, port
from mfu_sdk.peak.nvml.processes import ProcessUse, process_use
from mfu_sdk.peak.nvml.session import Nvml
from mfu_sdk.peak.nvml.witness import Activity, Witness

__all__ = [
    "Activity",
    "Counters",
    "Gpu",
    "Health",
    "Held",
    "Identity",
    "Interval",
    "Link",
    "Nvml",
    "NvmlError",
    "Path",
    "Port",
    "ProcessUse",
    "Slice",
    "State",
    "Witness",
    "counters",
    "events",
    "link",
    "open_gpu",
    "path_between",
    "port",
    "process_use",
]
