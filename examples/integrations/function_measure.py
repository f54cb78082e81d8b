"""A plain function, neither a training nor a request handler: each of its calls is measured.

python examples/integrations/function_measure.py --calls 8
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from mfu_sdk.integrations.functions import measured


# This is the line that mfu_sdk asks for.
@measured(name="power-iteration")
def dominant(matrix: Tensor, steps: int) -> Tensor:
    """The largest eigenvalue of a symmetric `matrix`, after so many products with it."""
    vector = torch.ones(len(matrix), 1, dtype=matrix.dtype)
    for _ in range(steps):
        vector = matrix @ vector
        vector = vector / vector.norm()
    return vector.T @ matrix @ vector


def main() -> None:
    """Parse the command line, call the function, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()

    torch.manual_seed(0)
    for _ in range(options.calls):
        half = torch.randn(options.size, options.size)
        dominant(half + half.T, 20)
    print(dominant.summary(), flush=True)
    dominant.close()


if __name__ == "__main__":
    main()
