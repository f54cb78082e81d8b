"""What crosses a GPU's PCIe bus, as an exporter counts it: bytes/s with headers, sent and received.

Exchanges with peers whose path it is, and with the NIC (`fabric.pcie_bytes`); batches from the host; an optimizer that
runs there takes gradients of 16 bits and gives weights of 16 bits back (ZeRO-Offload, arXiv 2101.06840, section 4.1).
"""

from collections.abc import Sequence

import numpy as np

from mfu_sdk.provider.simulate.models import Transformer
from mfu_sdk.provider.simulate.noise import Floats
from mfu_sdk.provider.simulate.training import Steady

IDLE: tuple[float, float] = (2e5, 2e5)
"""A GPU with nothing to do: what asks for its temperature."""
WORKING: tuple[float, float] = (3e7, 6e7)
"""Commands and completions, and what a server is asked and answers, which is small."""

# A packet carries 256 bytes behind some 24 of headers and framing (PCI Express base specification).
_FRAMED = 280 / 256
# An image of 224 × 224 pixels in single precision, as hosts prepare it; a token's number and its label.
_IMAGE_BYTES, _TOKEN_BYTES = 4 * 3 * 224 * 224, 16
_SIGMA = 0.03


def step_bytes(state: Steady) -> tuple[float, float]:
    """What one rank sends and receives in a step."""
    job = state.job
    each = _TOKEN_BYTES if isinstance(job.model, Transformer) else _IMAGE_BYTES
    exchanged = state.traffic.pcie_bytes
    if job.offloaded:
        exchanged += 2 * job.model.parameters / (job.ranks if job.sharded else job.tp)
    return exchanged * _FRAMED, (exchanged + each * job.tokens * job.tp) * _FRAMED


def rates(state: Steady, counts: Sequence[int], seconds: Floats, rng: np.random.Generator) -> Floats:
    """Bytes/s sent and received in windows of so many steps and seconds: (windows, ranks, 2)."""
    own = np.array(step_bytes(state)) * (np.array(counts) / seconds)[:, None] + np.array(WORKING)
    drawn: Floats = own[:, None, :] * (1 + _SIGMA * rng.standard_normal((len(counts), state.job.ranks, 2)))
    return np.maximum(drawn, 0.0)
