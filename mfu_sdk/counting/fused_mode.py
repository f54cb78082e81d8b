"""Counts what runs eagerly on meta tensors as if it had been compiled: chains fused, attention in one kernel.

FLOPs stay as they are. Bytes become those that a compiled program moves, by the rule of `fused`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from mfu_sdk.counting.books import Books
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.fused import OUT, Chains
from mfu_sdk.counting.place import Place
from mfu_sdk.counting.registry import Rule
from mfu_sdk.records import Convention, Count


class FusedMode(CountingMode):
    """The counting mode, with all that runs under it taken for one compiled region."""

    def _open(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> Books:
        return _FusedBooks(model, convention, others)


class _FusedBooks(Books):
    def __init__(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> None:
        super().__init__(model, convention, others)
        self._chains = Chains()

    def enter(
        self,
        rule: Rule,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        place: Place,
        *,
        fused: bool = False,
    ) -> None:
        """Enter one call; of a free operator nothing but what it moves to or from the outside of its chain."""
        module, stage, regions = place
        if regions or not isinstance(func, OpOverload):
            super().enter(rule, func, args, kwargs, result, place, fused=fused)
            return
        call = Call(func, args, kwargs, result)
        if rule.kind != "free":
            self.moves(OUT, self._chains.other(call), module, stage)
            super().enter(rule, func, args, kwargs, result, place, fused=fused)
            return
        self.moves(rule.name, self._chains.pointwise(call), module, stage)
        if rule.watched and stage != "optimizer":
            with self._lock:
                self._masks.observe(rule.name, call, None)

    def count(self) -> Count:
        """What was entered, and what the chains have written for whoever comes after them."""
        for moved in self._chains.left():
            self.moves(OUT, moved, "", "forward")
        self._chains = Chains()
        return super().count()


@contextmanager
def one_kernel_attention() -> Iterator[None]:
    """Scaled dot product attention on meta tensors as one kernel, forward and backward, as it is on GPUs.

    torch would take it apart there into products of all scores in fp32. Nothing else may use it meanwhile.
    """
    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    del dropout_p, enable_gqa
    aten: Any = torch.ops.aten
    kernel, given = aten._scaled_dot_product_fused_attention_overrideable, {"attn_bias": attn_mask}
    if attn_mask is None and query.shape[-1] == value.shape[-1]:
        # Which takes no mask, and values as wide as keys.
        kernel, given = aten._scaled_dot_product_flash_attention, {}
    out: Tensor = kernel(query, key, value, **given, is_causal=is_causal, scale=scale)[0]
    return out
