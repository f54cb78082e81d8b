"""Real text that every machine with Python has: the sources of its standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

MOST_BYTES = 4_000_000


def read() -> Tensor:
    """Up to four million bytes of Python source, in the order of the files' names."""
    found = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        found += path.read_bytes()
        if len(found) >= MOST_BYTES:
            break
    return torch.frombuffer(found[:MOST_BYTES], dtype=torch.uint8).clone()


class Windows(Dataset[Tensor]):
    """`count` windows of `length` + 1 bytes each, at places that `seed` decides: inputs and their next bytes."""

    def __init__(self, text: Tensor, length: int, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.text = text
        self.length = length
        self.starts = torch.randint(len(text) - length - 1, (count,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        start = self.starts[index]
        return self.text[start : start + self.length + 1].long()
