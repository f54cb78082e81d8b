"""The examples of `examples/integrations`, each as it is run, with the FLOPs of its steps by hand.

DeepSpeed's and Ray's need the extra `frameworks`; where it is not installed they are left out.
"""

import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mfu_sdk.errors import ConfigurationError

from .conftest import ROOT, Receiver, Run

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples" / "integrations"
# Two layers, 64 → 32 → 16, 16 rows; the first one's input needs no gradient.
STEP = 2 * 2 * 16 * 64 * 32 + 3 * 2 * 16 * 32 * 16


def gpt2(rows: int, layers: int = 2, width: int = 64, vocab: int = 256, length: int = 32) -> int:
    """Forward FLOPs: a block has 12 d² weights and multiplies each visible pair by d twice; the head has d·V."""
    tokens, pairs = rows * length, rows * length * (length + 1) // 2
    return layers * (2 * 12 * width**2 * tokens + 2 * 2 * width * pairs) + 2 * width * vocab * tokens


# Twenty products with a 64 × 64 matrix, and one more and two of vectors for the eigenvalue.
POWER = 20 * 2 * 64 * 64 + 2 * 64 * 64 + 2 * 64

TRAINED = {
    "accelerate": ("accelerate-mlp: 8 steps", [2 * STEP] * 8),
    "lightning": ("lightning-mlp: 8 steps", [2 * STEP] * 8),
    # Two micro-batches of four rows a step; after every fourth step one of eight rows is evaluated.
    "huggingface": ("hf-gpt2: 10 steps", 2 * [*[2 * 3 * gpt2(4)] * 4, gpt2(8)]),
    "function": ("power-iteration: 8 steps", [POWER] * 8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRAINED)
def test_example(
    name: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints its summary, and every step that it took was sent, with the FLOPs that a hand works out."""
    for variable, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "MFU_SPANS": "all", "MFU_CALIBRATE": "off",
        "ACCELERATE_USE_CPU": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    [example] = EXAMPLES.glob(f"{name}_*.py")
    monkeypatch.setattr(sys, "argv", [example.name])
    runpy.run_path(str(example), run_name="__main__")
    words, flops = TRAINED[name]
    receiver.wait_for("mfu.step", len(flops))
    assert words in capsys.readouterr().out
    sent = sorted(receiver.named("mfu.step"), key=lambda span: int(str(span["mfu.step.index"])))
    assert [span["mfu.model.flop"] for span in sent] == flops


def test_unedited_example(run: Run) -> None:
    """`mfu run` measures a script that knows nothing of us."""
    said = run(sys.executable, "-m", "mfu_sdk.cli", "run", EXAMPLES / "unedited_train.py", "--steps", 5)
    assert re.fullmatch(r"loss 0\.\d+\n", said.stdout), said.stderr
    assert said.stderr.startswith("Sequential: 4 steps")


deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@deepspeed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deepspeed(stage: int, run: Run, receiver: Receiver, tmp_path: Path) -> None:
    """Two micro-batches a step, with ZeRO and without: eight steps, with the FLOPs of two batches each."""
    said = run(
        sys.executable, EXAMPLES / "deepspeed_train.py", "--stage", stage, "--checkpoint", tmp_path / "kept",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, MFU_SPANS="all",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "deepspeed-mlp: 8 steps" in said.stdout
    assert [span["mfu.model.flop"] for span in receiver.named("mfu.step")] == [2 * STEP] * 8
    assert (tmp_path / "kept" / "latest").exists()


@deepspeed
def test_what_is_no_engine_is_refused() -> None:
    """A plain model is told from an engine."""
    from mfu_sdk.integrations.deepspeed import monitor

    with (
        pytest.raises(ConfigurationError, match=r"monitor\(engine=object\): is no DeepSpeed engine"),
        monitor(object()),
    ):
        pass


@ray
def test_ray(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    """Two workers: each sends its sixteen steps under one run id, and what they report has `mfu` in it."""
    said = run(
        sys.executable, EXAMPLES / "ray_train.py", "--storage", tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        MFU_SPANS="all", MFU_CALIBRATE="auto", RAY_USAGE_STATS_ENABLED="0", timeout=300,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    told = said.stdout + said.stderr
    assert re.search(r"metrics=\{'mfu': \d", told), told
    assert "ray-mlp: 16 steps" in told
    assert [span["mfu.model.flop"] for span in receiver.named("mfu.step")] == [STEP] * 32
    assert len(receiver.named("mfu.run")) == 2
