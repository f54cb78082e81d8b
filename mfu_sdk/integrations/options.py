"""What every integration passes on to `mfu.monitor`, under the names that it has there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict

from mfu_sdk.records import Convention, DriftEvent, Peaks, StepRecord
from mfu_sdk.settings import Settings


class Options(TypedDict, total=False):
    """Keywords of `mfu.monitor`, less those that an integration knows by itself (model, optimizer, first step)."""

    peaks: Peaks | None
    expected: float | None
    convention: Convention
    spans: Literal["auto", "all", "windows", "off"] | None
    on_step: Callable[[StepRecord], None] | None
    on_drift: Callable[[DriftEvent], None] | None
    live: bool
    settings: Settings | None
