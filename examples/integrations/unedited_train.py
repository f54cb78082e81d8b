r"""A training script that knows nothing of mfu_sdk.

    mfu run examples/integrations/unedited_train.py --steps 8
    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 opentelemetry-instrument \
        python examples/integrations/unedited_train.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(options.steps):
        loss = model(torch.randn(16, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
