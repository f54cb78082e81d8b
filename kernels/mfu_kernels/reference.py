"""What each kernel computes, in plain torch and float64: the truth that the tests hold the kernels against."""

import torch


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a` (m, k) @ `b` (k, n) as float64 (m, n). 2·m·n·k FLOPs."""
    return a.double() @ b.double()


def copy(source: torch.Tensor) -> torch.Tensor:
    """A new tensor with the bits of `source`. 2·elements·itemsize bytes moved."""
    return source.clone()


def triad(b: torch.Tensor, c: torch.Tensor, scale: float) -> torch.Tensor:
    """`b` + `scale`·`c` as float64, in their shape. 2·elements FLOPs."""
    return b.double() + scale * c.double()
