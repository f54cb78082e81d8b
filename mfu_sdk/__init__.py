"""Whether allocated GPUs do useful arithmetic, and why not: model FLOPs over (peak × time), measured in process.

Names only, resolved when they are first used: importing this package loads neither torch nor OpenTelemetry.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfu_sdk.counting.dispatch import count as count
    from mfu_sdk.counting.register import register_flops as register_flops
    from mfu_sdk.intent.forecast import expect as expect
    from mfu_sdk.peak.calibrate import calibrate as calibrate
    from mfu_sdk.peak.calibrate import peaks as peaks
    from mfu_sdk.requests import Load as Load
    from mfu_sdk.run.inference import inference as inference
    from mfu_sdk.run.monitor import monitor as monitor

__version__ = "0.1.0"
__all__ = ["Load", "calibrate", "count", "expect", "inference", "monitor", "peaks", "register_flops"]

_HOME = {
    "Load": "requests",
    "calibrate": "peak.calibrate",
    "count": "counting.dispatch",
    "expect": "intent.forecast",
    "inference": "run.inference",
    "monitor": "run.monitor",
    "peaks": "peak.calibrate",
    "register_flops": "counting.register",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
