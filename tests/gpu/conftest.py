"""What tests on a GPU share: whether Triton can launch anything there."""

from functools import cache

import pytest
import torch


@cache
def _why_not() -> str | None:
    from mfu_kernels import stream

    x = torch.zeros(1024, device="cuda")
    try:
        stream.copy(x, torch.empty_like(x))
    # Whatever building the launcher raises: a compiler, Python's headers or libcuda.so.1 may be missing.
    except Exception as error:  # noqa: BLE001
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return None


@pytest.fixture
def _launches() -> None:
    """Skips where Triton launches nothing, as in containers without a C compiler."""
    if (why := _why_not()) is not None:
        pytest.skip(f"Triton launches no kernel here: {why}")
