"""Stands in for what transformers computes from values, token by token or for nothing, so that it runs without data.

Each costs what it stands for, but for Llama 4's experts, which cost what the model is said to need.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Put them in place for `model`, whose tensors have no data, and take them away again.

    Some are put into transformers itself, so nothing else of it may run meanwhile.
    """
    with ExitStack() as undo:
        for module, owner, name, answer in _QUESTIONS:
            asked: Any = sys.modules.get(module)
            asked = getattr(asked, owner, None) if owner else asked
            if hasattr(asked, name):
                undo.enter_context(_replaced(asked, name, answer))
        for code in {sys.modules[type(part).__module__] for part in model.modules()}:
            if hasattr(code, "mamba_selective_scan"):
                undo.enter_context(_replaced(code, "mamba_selective_scan", _selective_scan))
        for part in model.modules():
            if type(part).__name__ == "Llama4TextMoe":
                mixture: Any = part
                run = partial(_chosen_experts, mixture.experts, mixture.top_k)
                undo.enter_context(_replaced(mixture.experts, "forward", run))
        yield


@contextmanager
def _replaced(owner: Any, name: str, stand_in: object) -> Iterator[None]:
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _one_sequence(_positions: Tensor) -> None:
    """No row of the batch holds several packed sequences, which transformers would read from its positions."""


def _nothing_padded(_mask: Tensor) -> bool:
    """Every entry of a padding mask is true: all tokens of a count are."""
    return True


def _no_warning(_model: nn.Module, _tokens: Tensor, _mask: Tensor | None) -> None:
    """No token is looked at to see whether it pads."""


_QUESTIONS: Final = (
    ("transformers.modeling_utils", "PreTrainedModel", "warn_if_padding_and_no_attention_mask", _no_warning),
    ("transformers.masking_utils", "", "find_packed_sequence_indices", _one_sequence),
    ("transformers.masking_utils", "", "fast_all", _nothing_padded),
)
"""What transformers asks about values, which no step that is counted here has: module, class, function, the answer."""


def _selective_scan(
    hidden: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, return_last_state: bool = False, **_: Any
) -> Any:
    """Mamba's recurrence without its loop over tokens: a read-out of (channels, states) for each of them.

    hidden and dt (B, D, L), a (D, N), b and c (B, N, L). The rest of the recurrence is elementwise, which is free.
    """
    # Every tensor that wants a gradient is in it.
    states = hidden.unsqueeze(-1) * dt.unsqueeze(-1) * a[None, :, None] * b.transpose(1, 2).unsqueeze(1)
    states = states.to(hidden.dtype)
    out = torch.matmul(states.transpose(1, 2), c.to(hidden.dtype).transpose(1, 2).unsqueeze(-1)).squeeze(-1)
    out = out.transpose(1, 2)
    return (out, states[:, :, -1]) if return_last_state else out


def _chosen_experts(experts: Any, top_k: int, hidden: Tensor) -> Tensor:
    """Llama 4's experts on the tokens that chose them; transformers gives every expert all tokens, most times zero.

    One copy of all tokens for each expert comes in, and goes out.
    """
    everyone = hidden.shape[0]
    rows = everyone // experts.num_experts * top_k
    offsets = torch.empty(experts.num_experts, dtype=torch.int32, device=hidden.device)
    both = torch.nn.functional.grouped_mm(hidden[:rows], experts.gate_up_proj, offs=offsets)
    gate, up = both.chunk(2, dim=-1)
    out = torch.nn.functional.grouped_mm(up * experts.act_fn(gate), experts.down_proj, offs=offsets)
    return torch.nn.functional.pad(out, (0, 0, 0, everyone - rows))
