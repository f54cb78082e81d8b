"""Whether torch may use TF32 for fp32 arithmetic on a CUDA device, through whichever of its two interfaces is in use.

torch 2.9 brought `fp32_precision` ("tf32", "ieee", "none" for the parent's) beside the older `allow_tf32`; once the
new one was set, reading the old one raises. Neither is touched where it can be helped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def products_allow_tf32() -> bool:
    """Whether fp32 matrix products may run as TF32."""
    return _allowed(torch.backends.cuda.matmul)


def convolutions_allow_tf32() -> bool:
    """Whether fp32 convolutions may."""
    return _allowed(torch.backends.cudnn)


def recurrences_allow_tf32() -> bool:
    """Whether fp32 recurrent cells may."""
    return _allowed(torch.backends.cudnn)


def _allowed(backend: Any) -> bool:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        # The new interface is in use: "none" leaves it to the next wider setting.
        for scope in (getattr(backend, "conv", backend), backend, torch.backends):
            precision = getattr(scope, "fp32_precision", "none")
            if precision != "none":
                return bool(precision == "tf32")
        return False


@contextmanager
def fp32_products(*, tf32: bool) -> Iterator[None]:
    """Let fp32 matrix products run as TF32, or not, inside of the block; the user's own choice holds again after it."""
    matmul: Any = torch.backends.cuda.matmul
    name, value = (
        ("fp32_precision", "tf32" if tf32 else "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", tf32)
    )
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)
