"""How long is long: what ranks on this machine must be late by for it to stand out from all else that they do."""

import statistics
import time
from typing import Final

TIMES: Final = 20
"""What is injected is at least so many times a plain step, so that a quarter of it is several steps."""


def at_least(seconds: float) -> float:
    """`seconds`, or more on a machine that is so busy that plain steps take a good part of it; on all ranks the same.

    To be called on all of them. A step of a small model and an exchange of its gradients is what is taken for plain.
    """
    import torch
    import torch.distributed as dist
    from torch import nn

    model = nn.Linear(64, 64)
    took_s = []
    for _ in range(15):
        began_s = time.perf_counter()
        model(torch.ones(16, 64)).sum().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        took_s.append(time.perf_counter() - began_s)
    plain = torch.tensor(statistics.median(took_s), dtype=torch.float64)
    dist.all_reduce(plain, dist.ReduceOp.MAX)
    return max(seconds, TIMES * float(plain))
