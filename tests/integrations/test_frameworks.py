"""DeepSpeed and Ray Train, where they are installed (the extra `frameworks`): their examples run, with FLOPs by hand."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mfu_sdk.errors import ConfigurationError

from .conftest import ROOT, Receiver, Run

EXAMPLES = ROOT / "examples" / "integrations"
# Two layers, 64 → 32 → 16, 16 rows; the first one's input needs no gradient.
STEP = 2 * 2 * 16 * 64 * 32 + 3 * 2 * 16 * 32 * 16

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

    with pytest.raises(ConfigurationError, match="monitor.engine=object.: is no DeepSpeed engine"), monitor(object()):
        pass


@ray
def test_ray(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    """Two workers: each sends its sixteen steps under one run id, and what they report has `mfu` in it."""
    said = run(
        sys.executable, EXAMPLES / "ray_train.py", "--storage", tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        MFU_SPANS="all", MFU_CALIBRATE="auto", RAY_USAGE_STATS_ENABLED="0", timeout=240,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    told = said.stdout + said.stderr
    assert re.search(r"metrics=\{'mfu': \d", told), told
    assert "ray-mlp: 16 steps" in told
    assert [span["mfu.model.flop"] for span in receiver.named("mfu.step")] == [STEP] * 32
    assert len(receiver.named("mfu.run")) == 2
