"""A GPU's backward runs in a thread of the engine's; here a device without arithmetic has it run in one too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("device_process.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this version of torch lets no device be made in Python"),
]


@pytest.fixture(scope="module")
def found() -> dict[str, list[dict[str, Any]]]:
    """For each step its count on the processor and on the device, in products of one layer."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM)],
        env=os.environ | {"MFU_GUARD": "raise"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("function", ["no function", "Written", "Priced"])
@pytest.mark.parametrize("again", ["plain", "reentrant", "not reentrant"])
def test_the_thread_changes_nothing(found: dict[str, list[dict[str, Any]]], function: str, again: str) -> None:
    """Its autograd nodes have the numbers of the program's: none is taken for another, nor its module or its price."""
    processor, device = found[f"{function}, {again}"]
    assert device == processor


def test_by_hand(found: dict[str, list[dict[str, Any]]]) -> None:
    """Four products forward, eight backward; what is checkpointed, two of them, again: a price stands for its own."""
    device = found["no function, reentrant"][1]
    assert device["flops"] == [4, 8, 2]
    assert set(device["modules"].values()) == {3}
    device = found["Priced, reentrant"][1]
    assert (device["flops"], device["uncounted"]) == ([4 + 200, 8 + 600, 2 + 100], [])
