"""The demo's model against a count by hand."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mfu_sdk as mfu
from mfu_sdk.records import StepRecord

EXAMPLE = Path(__file__).parents[2] / "examples" / "bytegpt"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's model module, imported as its scripts import it."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import model

    yield model
    sys.modules.pop("model", None)


def by_hand(layers: int, width: int, vocab: int, batch: int, length: int) -> int:
    """Forward and backward FLOPs of one step, 2 a multiply-add, causal pairs only.

    A block has 3 + 1 + 4 + 4 = 12 d² weights, each used once a token; attention multiplies each of the
    length (length + 1) / 2 visible pairs by d twice (scores and values); the head has d·V weights; look-ups are free.
    Every weight's input needs a gradient too (the embeddings are trained), so the backward pass is twice the forward.
    """
    tokens = batch * length
    pairs = batch * length * (length + 1) // 2
    forward = layers * (2 * 12 * width**2 * tokens + 2 * 2 * width * pairs) + 2 * width * vocab * tokens
    return 3 * forward


@pytest.mark.parametrize(("batch", "length"), [(2, 64), (3, 17)])
def test_one_step_by_hand(example: Any, batch: int, length: int) -> None:
    """Counted FLOPs of a training step are those of the derivation, to the last one; attention is told apart."""
    config = example.Config(layers=2, heads=4, width=32)
    model = example.ByteGPT(config)
    ids = torch.randint(256, (batch, length))

    def step() -> None:
        F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten()).backward()

    found = mfu.count(step)
    assert found.model_flops == by_hand(2, 32, 256, batch, length)
    assert found.backward_flops == 2 * found.forward_flops
    assert found.attention_flops_full - found.attention_flops_exact == 3 * 2 * (
        2 * 2 * 32 * batch * length * (length - 1) // 2
    )
    assert found.uncounted == ()
    assert found.coverage == 1.0


def test_generation_by_hand(example: Any) -> None:
    """Prefill and decode with a cache: every new byte pays for its weights once and looks at all before it."""
    layers, width, batch, prompt, new = 2, 32, 3, 10, 4
    model = example.ByteGPT(example.Config(layers=layers, heads=4, width=width))
    found = mfu.count(model.generate, torch.randint(256, (batch, prompt)), new)
    tokens = batch * (prompt + new - 1)
    # The prompt's causal pairs, then one row of 11, 12 and 13 keys.
    pairs = batch * (prompt * (prompt + 1) // 2 + 11 + 12 + 13)
    assert found.model_flops == layers * (2 * 12 * width**2 * tokens + 4 * width * pairs) + 2 * width * 256 * tokens
    assert found.backward_flops == 0


def test_mfu_of_a_real_run_by_hand(example: Any) -> None:
    """On the real clock and a real calibration, MFU is the derivation over (measured peak × measured time), to 2 %."""
    torch.manual_seed(0)
    model = example.ByteGPT(example.Config())
    optimizer = torch.optim.AdamW(model.parameters())
    records: list[StepRecord] = []
    peaks = mfu.calibrate(budget_s=1.0)
    with mfu.monitor(model, peaks=peaks, on_step=records.append) as run:
        for _ in range(8):
            ids = torch.randint(256, (4, 128))
            with run.step(tokens=ids.numel()):
                loss = F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    flops = by_hand(4, 192, 256, 4, 128)
    peak = peaks.achievable["float32"].flops_per_s
    timed = [r for r in records if r.timed]
    assert [r.index for r in timed] == [3, 5, 6, 7]
    for record in timed:
        assert record.mfu == pytest.approx(flops / (peak * record.duration_s), rel=0.02)
    summary = run.summary()
    assert summary.mfu == pytest.approx(len(timed) * flops / (peak * sum(r.duration_s for r in timed)), rel=0.02)
    assert summary.expected_mfu is not None
    assert 0 < summary.expected_mfu <= 1


def test_the_streaming_example(example: Any, tmp_path: Path) -> None:
    """Six answers to three clients at once: their bytes are counted, and their FLOPs are known but for none."""
    example.save(example.ByteGPT(example.Config()), str(tmp_path / "weights.f32"))
    script = [sys.executable, EXAMPLE / "stream.py", "--weights", tmp_path / "weights.f32", "--clients", "3"]
    said = subprocess.run(script, check=False, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert f"tokens       {6 * 32}" in said.stdout
    assert "not counted  nothing (coverage 100.0%)" in said.stdout


def test_weights_survive_the_file(example: Any, tmp_path: Path) -> None:
    """What `save` wrote, `load` reads back bit by bit, with no pickle in between."""
    config = example.Config(layers=1, heads=2, width=16)
    model = example.ByteGPT(config)
    example.save(model, str(tmp_path / "weights.f32"))
    assert (tmp_path / "weights.f32").stat().st_size == 4 * sum(p.numel() for p in model.parameters())
    again = example.load(config, str(tmp_path / "weights.f32"), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
