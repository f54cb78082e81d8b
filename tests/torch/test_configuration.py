"""The facts that a configuration is known by, as torch, the model and the run's identity have them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mfu_sdk.drift.fingerprint import Fingerprint
from mfu_sdk.peak.device import resolve
from mfu_sdk.ranks import Axis
from mfu_sdk.records import Count, OpCost, RunIdentity
from mfu_sdk.run.configuration import autocast, counted, now, opened

IDENTITY = RunIdentity("run", 0, "work", "f1", 0, 0, 4, "Example", None, None, 0)


def test_layout() -> None:
    """How ranks are laid out is the tenant's choice; of which slice they are is not."""
    flat = Fingerprint.of(opened(nn.Linear(2, 2), resolve("cpu"), IDENTITY))
    tensor = replace(IDENTITY, axes={"dp": Axis(2, 0), "tp": Axis(2, 1)})
    sliced = replace(IDENTITY, mig_profile="1g.10gb")
    laid_out, on_a_slice = (
        Fingerprint.of(opened(nn.Linear(2, 2), resolve("cpu"), identity)) for identity in (tensor, sliced)
    )
    assert flat.diff(laid_out) == ("parallel.dp: not set → 2", "parallel.tp: not set → 2")
    assert flat.diff(on_a_slice) == ("device.mig: not set → 1g.10gb",)
    assert laid_out.intent != flat.intent
    assert on_a_slice.intent == flat.intent


@pytest.mark.parametrize(("dtype", "told"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_autocast(dtype: torch.dtype, told: str) -> None:
    """As it is where the model is called."""
    assert autocast() == "off"
    with torch.autocast("cpu", dtype=dtype):
        assert autocast() == told


def test_switches() -> None:
    """Those that a program may turn at any time, as they stand."""
    before = Fingerprint.of(now("cpu"))
    torch.backends.cuda.enable_flash_sdp(enabled=False)
    torch.set_float32_matmul_precision("medium")
    try:
        told = before.diff(Fingerprint.of(now("cpu")))
    finally:
        torch.backends.cuda.enable_flash_sdp(enabled=True)
        torch.set_float32_matmul_precision("highest")
    assert told == ("attention.allowed: −flash", "matmul.precision: highest → medium")


def test_operators_that_matter() -> None:
    """Those with FLOPs or a hundredth of the bytes; what logs now and then is not among them."""
    ops = (
        OpCost("aten::mm", "bfloat16", 600, 10, 1),
        OpCost("aten::add", "bfloat16", 0, 6000, 2),
        OpCost("aten::mul", "bfloat16", 0, 40, 2),
        OpCost("aten::mul", "float32", 0, 40, 2),
        OpCost("aten::_local_scalar_dense", "float32", 0, 8, 2),
        OpCost("aten::_flash_attention_forward", "bfloat16", 0, 0, 1),
    )
    count = Count(600, 600, 200, 400, 0, 0, 0, 0, {"bfloat16": 600}, {}, {}, (), 1.0, 6098, {}, "exact", ops)
    told = counted(count, "bfloat16")
    assert told.main == {"aten::mm", "aten::add", "aten::mul"}
    assert told.facts == {
        "autocast": "bfloat16",
        "dtype.products": {"bfloat16"},
        "operators": {op.op for op in ops},
        "attention.operators": {"aten::_flash_attention_forward"},
        "recomputed": 0.0,
    }
