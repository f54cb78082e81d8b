"""Megatron-LM's own linear layers, whose weights' gradients may be accumulated by an extension that shows nothing."""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting.functions import FunctionCost, FunctionPrice
from mfu_sdk.counting.third_party.wanted import products
from mfu_sdk.errors import FormulaError


def _linear(named: Mapping[str, Any]) -> FunctionCost:
    """(…, K) × (N, K); with sequence parallelism the rows are gathered over the group first."""
    if named.get("grad_output_buffer") is not None:
        raise FormulaError("deferred weight gradients: their products run outside of the backward; register a formula")
    rows, group = named["input"].shape[:-1].numel(), named.get("tp_group")
    if named["sequence_parallel"]:
        if group is None:
            raise FormulaError("sequence parallelism without tp_group: rows unknown; register a formula")
        rows *= group.size()
    return products(named, 2 * rows * named["weight"].numel(), "input", "weight")


FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    "megatron.core.tensor_parallel.layers:LinearWithGradAccumulationAndAsyncCommunication.forward": FunctionPrice(
        _linear,
        "input",
        words="2·rows·weight; as much for each gradient wanted",
        source="NVIDIA/Megatron-LM, megatron/core/tensor_parallel/layers.py",
    )
}
