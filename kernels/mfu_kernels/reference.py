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


def read(source: torch.Tensor) -> torch.Tensor:
    """The sum of `source` as a float64 scalar. elements·itemsize bytes read."""
    return source.double().sum()


def fma(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The sum of four chains y ← y·x + ½, `steps` long, begun at x, x + 1, x + 2, x + 3, in float64. 8·steps FLOPs."""
    x = x.double()
    chains = [x + start for start in range(4)]
    for _ in range(steps):
        chains = [chain * x + 0.5 for chain in chains]
    return torch.stack(chains).sum(0)
