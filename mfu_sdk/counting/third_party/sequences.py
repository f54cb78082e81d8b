"""How the arguments of other libraries' attention calls become pairs of queries and keys.

Most take flash-attention's arguments under one or two names each: (batch, length, heads, size) operands, or (total
length, heads, size) with cumulative lengths; keys may lie in a cache, in pages of it or be left-padded. Masks are
aligned bottom-right, as flash-attention's are from version 2.1 on.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from mfu_sdk.counting import attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.errors import FormulaError

Pass = Callable[[int, int, int, int, int], Cost]
"""`attention.forward` or `attention.backward`."""


Named = Call | Mapping[str, Any]
"""Arguments by name: of an operator, or of a function."""


def first(named: Named, *names: str) -> Any:
    """The first of these arguments that there is and that is not None, else None."""
    return next((value for name in names if (value := named.get(name)) is not None), None)


def tensor(named: Named, *names: str) -> Any:
    """The first of these arguments that there is. Raises `FormulaError` if there is none."""
    value = first(named, *names)
    if value is None:
        raise FormulaError(f"argument {names[0]!r}: none was given, and the price hangs on it; register a formula")
    return value


def values(lengths: Any) -> list[int]:
    """Lengths that a tensor or sequence holds. Raises `FormulaError` for a tensor without data."""
    if isinstance(lengths, torch.Tensor):
        if lengths.is_meta or type(lengths) is not torch.Tensor:
            raise FormulaError("lengths in a tensor without data: the price hangs on them; count it on a device")
        lengths = lengths.flatten().tolist()
    return [int(length) for length in lengths]


def differences(cumulative: Any) -> list[int]:
    """The lengths between cumulative ones."""
    return [end - start for start, end in pairwise(values(cumulative))]


def side(size: Any) -> int | None:
    """One side of a window: None and negative numbers say "no limit"."""
    return None if size is None or size < 0 else int(size)


def cost(
    passed: Pass,
    lengths: Sequence[tuple[int, int]],
    heads: int,
    sizes: tuple[int, int],
    *,
    causal: bool,
    window: tuple[int | None, int | None] = (None, None),
    align: attention.Alignment = "bottom_right",
) -> Cost:
    """The cost of `heads` heads over sequences of (queries, keys); `sizes` are those of a key and a value.

    Kernels are charged the pairs that the mask lets through, as everywhere: they skip the blocks beyond it.
    """
    full = heads * sum(q * k for q, k in lengths)
    exact = heads * sum(
        attention.pairs(q, k, causal=align if causal else None, window=window, align=align) for q, k in lengths
    )
    return passed(exact, full, exact, *sizes)


def flash(passed: Pass, named: Named) -> Cost:
    """The cost of a call that has flash-attention's arguments, of any version."""
    for name in ("attention_chunk", "mask_mod", "block_sparse_tensors", "gather_kv_indices"):
        if named.get(name):
            raise FormulaError(f"attention with {name}: its pairs cannot be told from it; register a formula")
    query, second = first(named, "q", "query"), first(named, "qv", "q_v")
    value = tensor(named, "v_cache", "v", "value")
    # Multi-head latent attention adds a second product to the scores, and may have no other.
    parts = [part for part in (query, second) if part is not None]
    sizes = sum(part.shape[-1] for part in parts), value.shape[-1]
    queries = _query_lengths(named, parts[0])
    keys = _key_lengths(named, value, len(queries))
    return cost(
        passed,
        list(zip(queries, keys, strict=True)),
        parts[0].shape[-2],
        sizes,
        causal=bool(first(named, "causal", "is_causal")),
        window=window(named),
    )


def window(named: Named) -> tuple[int | None, int | None]:
    """The sliding window, given as a pair or as two numbers."""
    both = named.get("window_size")
    left, right = both or (
        first(named, "window_size_left", "window_left"),
        first(named, "window_size_right", "window_right"),
    )
    return side(left), side(right)


def _query_lengths(named: Named, query: Any) -> list[int]:
    used = first(named, "seqused_q", "sequed_q")
    if used is not None:
        return values(used)
    packed = named.get("cu_seqlens_q")
    return differences(packed) if packed is not None else [query.shape[1]] * query.shape[0]


def _key_lengths(named: Named, value: Any, batch: int) -> list[int]:
    used = first(named, "seqused_k", "sequed_k", "cache_seqlens")
    packed = named.get("cu_seqlens_k")
    new = first(named, "k_new", "k") if named.get("k_cache") is not None else named.get("k_new")
    if used is not None:
        lengths = [used] * batch if isinstance(used, int) else values(used)
    elif packed is not None:
        lengths = differences(packed)
    elif first(named, "page_table", "block_table", "block_tables") is not None or new is not None:
        raise FormulaError("attention over a cache without its lengths: no price without them; register a formula")
    else:
        lengths = [value.shape[1]] * batch
    if new is not None:
        packed_new = named.get("cu_seqlens_k_new")
        added = differences(packed_new) if packed_new is not None else [new.shape[1]] * batch
        lengths = [old + more for old, more in zip(lengths, added, strict=True)]
    padding = first(named, "leftpad_k", "cache_leftpad")
    if padding is not None:
        lengths = [length - empty for length, empty in zip(lengths, values(padding), strict=True)]
    return lengths
