"""Prefill or decode: what a call of the model and its key-value cache say of themselves.

A call is told by how many new tokens it brings and by whether its cache holds any yet:

- nothing cached yet, and a cache given or returned: prefill;
- something cached, and few new tokens (`DECODE_MOST`): decode. Speculative decoding checks a handful at once, and its
  work is of decode's kind: the weights are read for a few rows, so the memory binds it;
- something cached, and many new tokens: a later piece of a prompt (chunked prefill, the next turn of a chat), so
  prefill. The last piece of a prompt, where it is that short, looks like decode and is taken for it;
- no cache in and none out: neither. A classifier's call says nothing of phases, nor does one of a model that works on
  the whole text again for every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch

from mfu_sdk.counting.plan import leading_dimension
from mfu_sdk.records import Phase

DECODE_MOST: Final = 16
"""New tokens of one call against a cache that are still decode."""
_NAMED: Final = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
_NOT_TOKENS: Final = ("mask", "position", "past", "cache")

State = Literal["empty", "filled", "unread"]
"""What a cache holds; `unread` where to read its length would wait for the device."""


class CallShape(NamedTuple):
    """What a call of the model shows before it runs: sequences, new tokens of each, and its cache, None for none."""

    batch: int
    new: int | None
    cache: State | None


def shape_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallShape:
    """The shape of a call."""
    tokens = _tokens(args, kwargs)
    cache: State | None = next(
        (found for value in (*args, *kwargs.values()) if (found := _cache(value)) is not None), None
    )
    if tokens is None:
        return CallShape(leading_dimension(args, kwargs), None, cache)
    return CallShape(int(tokens.shape[0]), int(tokens.shape[1]), cache)


def phase_of(call: CallShape, output: Any, *, prompted: bool) -> Phase:
    """The phase of a call that has returned `output`; `prompted`: its request had a prefill call before."""
    cache = call.cache
    if cache is None and _returned_cache(output):
        cache = "empty"
    if cache is None:
        return "inference"
    if cache == "empty":
        return "prefill"
    if call.new is None:
        return "inference"
    if call.new > DECODE_MOST:
        return "prefill"
    return "decode" if cache == "filled" or prompted else "prefill"


def _tokens(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The tensor that holds the new tokens, as ids (batch, length) or embedded (batch, length, width)."""
    for name in _NAMED:
        if _is_tokens(value := kwargs.get(name)):
            return value
    for value in args:
        if _is_tokens(value):
            return value  # type: ignore[no-any-return]  # as above
    for name, value in kwargs.items():
        if _is_tokens(value) and not any(word in name for word in _NOT_TOKENS):
            return value  # type: ignore[no-any-return]  # as above
    return None


def _is_tokens(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == (3 if value.is_floating_point() else 2)


def _cache(value: Any) -> State | None:
    """What a value holds as a cache: an object that tells its length, or keys and values for each layer."""
    if value is None or isinstance(value, torch.Tensor | str | int | float):
        return None
    length = getattr(value, "get_seq_length", None)
    if callable(length):
        return _state(length())
    if isinstance(value, list | tuple) and value and isinstance(layer := value[0], list | tuple) and len(layer) >= 2:
        keys = layer[0]
        if all(isinstance(each, torch.Tensor) and each.dim() >= 3 for each in layer[:2]) and keys.is_floating_point():
            return "filled" if keys.numel() else "empty"
    return None


def _state(length: Any) -> State | None:
    if isinstance(length, torch.Tensor):
        if length.device.type != "cpu":
            return "unread"
        length = int(length)
    return None if not isinstance(length, int) else "filled" if length > 0 else "empty"


def _returned_cache(output: Any) -> bool:
    if isinstance(output, Mapping):
        parts: Sequence[Any] = tuple(output.values())
    else:
        parts = output if isinstance(output, list | tuple) else ()
    return any(_cache(part) is not None for part in parts)
