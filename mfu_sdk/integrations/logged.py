"""What a framework logs of us: sums over the steps since it logged last, never a mean of ratios."""

from __future__ import annotations

from collections.abc import Callable

from mfu_sdk.guard import shield
from mfu_sdk.records import StepRecord


class Logged:
    """Takes every `StepRecord` of a run, as its `on_step`, and gives what there is to log of the training steps."""

    def __init__(self, also: Callable[[StepRecord], None] | None = None) -> None:
        """`also` is the user's own `on_step`, which is called first."""
        self._also = also
        self._clear()

    def _clear(self) -> None:
        self._flops = 0
        self._hardware_flops = 0
        self._available_flops = 0.0
        self._expected_flops = 0.0
        self._all_expected = True
        self._tokens = 0
        self._tokens_s = 0.0

    def __call__(self, record: StepRecord) -> None:
        """Take a step."""
        if self._also is not None:
            with shield("the on_step callback"):
                self._also(record)
        if record.phase != "train" or not record.timed:
            return
        if record.tokens is not None:
            self._tokens += record.tokens
            self._tokens_s += record.duration_s
        if record.model_flops is None or record.hardware_flops is None or record.available_flops is None:
            return
        self._flops += record.model_flops
        self._hardware_flops += record.hardware_flops
        self._available_flops += record.available_flops
        if record.expected_mfu is None:
            self._all_expected = False
        else:
            self._expected_flops += record.expected_mfu * record.available_flops

    def take(self) -> dict[str, float]:
        """`mfu`, `hfu`, `expected_mfu` and `tokens_per_s` since the last call, as far as they are known.

        Empty where no step was timed: those that ran under the counting mode are in no sum.
        """
        found: dict[str, float] = {}
        if self._available_flops:
            found["mfu"] = self._flops / self._available_flops
            found["hfu"] = self._hardware_flops / self._available_flops
            if self._all_expected:
                found["expected_mfu"] = self._expected_flops / self._available_flops
        if self._tokens_s:
            found["tokens_per_s"] = self._tokens / self._tokens_s
        self._clear()
        return found
