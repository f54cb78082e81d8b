"""`opentelemetry-instrument`: the command of OpenTelemetry's own package loads us, and training is measured."""

import logging
import os
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch  # noqa: F401 - what the instrumentor waits for

from mfu_sdk import testing
from mfu_sdk.integrations.instrumentor import MFUInstrumentor

from .conftest import ROOT, Receiver, Run
from .test_run import PATIENT, TRAIN, TRAINING, write

GROUP = "opentelemetry_instrumentor"


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A folder for PYTHONPATH that declares our entry point, empty where the installed package does so already."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    folder = tmp_path / "declared"
    folder.mkdir()
    if not entry_points(group=GROUP, name="mfu"):
        info = folder / "mfu_sdk_entry_point-0.dist-info"
        write(info / "METADATA", "Metadata-Version: 2.1\nName: mfu-sdk-entry-point\nVersion: 0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in declared.items())
        write(info / "entry_points.txt", f"[{GROUP}]\n{lines}\n")
    return str(folder)


def test_an_unchanged_command(run: Run, receiver: Receiver, installed: str, tmp_path: Path) -> None:
    """`opentelemetry-instrument python train.py`: five of six steps arrive, with their FLOPs; nothing is printed."""
    script = write(tmp_path / "train.py", TRAINING + PATIENT + "print('trained')\n")
    said = run(
        Path(sys.executable).with_name("opentelemetry-instrument"), sys.executable, script,
        PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "kernels"), installed)),
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", MFU_SPANS="all",
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (0, "trained\n"), said.stderr
    assert [span["mfu.model.flop"] for span in receiver.named("mfu.step")] == [TRAIN] * 5
    assert len(receiver.named("mfu.run")) == 1
    assert "mfu" not in said.stderr


def test_it_can_be_left_out(run: Run, receiver: Receiver, installed: str, tmp_path: Path) -> None:
    """OpenTelemetry's own variable names instrumentations that are not wanted."""
    probe = "import sys\nprint('mfu_sdk.integrations.instrumentor' in sys.modules, 'torch' in sys.modules)\n"
    script = write(tmp_path / "probe.py", probe)

    def printed(**env: str) -> str:
        said = run(
            Path(sys.executable).with_name("opentelemetry-instrument"), sys.executable, script,
            PYTHONPATH=os.pathsep.join((str(ROOT), installed)), OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", **env,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        return said.stdout

    # Loaded into a program that has nothing to do with torch, it does not import torch.
    assert printed() == "True False\n"
    assert printed(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="mfu") == "False False\n"


def test_a_wrong_setting_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is warned of, and raises nothing: OpenTelemetry would load no other instrumentation after it."""
    monkeypatch.setenv("MFU_SPANS", "some")
    instrumentor = MFUInstrumentor()
    with caplog.at_level(logging.WARNING):
        instrumentor.instrument()
    instrumentor.uninstrument()
    assert "MFU_SPANS='some'" in caplog.text
    assert "this program is not measured" in caplog.text


def test_by_hand() -> None:
    """A program may load it itself; taking it out again leaves nothing."""
    instrumentor = MFUInstrumentor()
    instrumentor.instrument()
    try:
        assert testing.leaked_hooks() == ["global optimizer pre-hook ×1"]
    finally:
        instrumentor.uninstrument()
    assert testing.leaked_hooks() == []
