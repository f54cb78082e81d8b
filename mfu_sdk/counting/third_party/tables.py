"""Every price of another library's work, by the name of what does it."""

from collections.abc import Mapping
from typing import Final

from mfu_sdk.counting.functions import FunctionPrice, KernelPrice
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party import (
    elementwise,
    fbgemm,
    flash_attention,
    grouped_gemm,
    liger,
    linear_attention,
    mamba,
    megatron,
    normed_linear,
    sage_attention,
    torchao,
    transformer_engine,
    vllm,
    xformers,
)

OPERATORS: Final[Mapping[str, Price]] = {
    **flash_attention.OPERATORS,
    **xformers.OPERATORS,
    **torchao.OPERATORS,
    **fbgemm.OPERATORS,
    **vllm.OPERATORS,
    **mamba.OPERATORS,
    **elementwise.OPERATORS,
}
"""Operators of the dispatcher, by qualified name without overload."""

FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    **flash_attention.FUNCTIONS,
    **transformer_engine.FUNCTIONS,
    **megatron.FUNCTIONS,
    **linear_attention.FUNCTIONS,
    **mamba.FUNCTIONS,
    **liger.FUNCTIONS,
    **normed_linear.FUNCTIONS,
    **grouped_gemm.FUNCTIONS,
    **sage_attention.FUNCTIONS,
    **elementwise.FUNCTIONS,
}
"""Python functions, and the forwards of autograd functions, by "module:qualname"."""

KERNELS: Final[Mapping[str, KernelPrice]] = {**vllm.KERNELS, **elementwise.KERNELS}
"""Triton kernels that are launched from Python, by "module:qualname"."""
