"""A cache of keys and values that is as long as asked for and holds no data, so that one decoded token can be counted.

What is appended is handed back at the cache's length and nothing is copied, as a paged or a static cache has it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _HeldLayer(DynamicLayer):
    """One layer's keys and values for `length` tokens, of which those of the newest are being added."""

    def __init__(self, length: int, *, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self._length = length
        # By this a mask finds a layer of its kind.
        self.is_sliding = is_sliding

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._whole(key_states), self._whole(value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        del query_length
        return self._length, 0

    def get_seq_length(self) -> int:
        return self._length - 1

    def _whole(self, new: Tensor) -> Tensor:
        # Memory that is only set aside moves nothing; whoever reads it moves all of it.
        return new.new_empty((*new.shape[:-2], self._length, new.shape[-1]))


def held_cache(config: Any, length: int) -> Cache:
    """A cache for all layers of `config`, of `length` tokens with the new one; a sliding layer keeps its window."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    unknown = sorted(
        {kind for kind in kinds if kind not in ("full_attention", "sliding_attention", "chunked_attention")}
    )
    if unknown:
        raise ValueError(f"layers of kind {', '.join(unknown)} have another cache than keys and values")
    layers: list[Any] = []
    for kind in kinds:
        kept = length if kind == "full_attention" or window is None else min(length, window)
        layers.append(_HeldLayer(kept, is_sliding=kind != "full_attention" and window is not None))
    return Cache(layers=layers)
