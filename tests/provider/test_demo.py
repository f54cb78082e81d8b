"""`mfu demo`: the whole path, and what is left when it is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mfu_sdk import demo
from mfu_sdk.errors import ConfigurationError

pytestmark = pytest.mark.slow

PROMPT, NEW, LAYERS, WIDTH, VOCAB = 64, 32, 4, 192, 256


def training_flops(batch: int, length: int) -> int:
    """Forward and backward of the example's GPT: 12 d² weights a block, d V in the head, causal pairs."""
    pairs = batch * length * (length + 1) // 2
    forward = LAYERS * (24 * WIDTH**2 * batch * length + 4 * WIDTH * pairs) + 2 * WIDTH * VOCAB * batch * length
    return 3 * forward


def generation_flops(batch: int) -> int:
    """One request: the prompt at once, then a byte at a time over all bytes before it."""
    tokens = batch * (PROMPT + NEW - 1)
    pairs = batch * (PROMPT * (PROMPT + 1) // 2 + sum(range(PROMPT + 1, PROMPT + NEW)))
    return LAYERS * (24 * WIDTH**2 * tokens + 4 * WIDTH * pairs) + 2 * WIDTH * VOCAB * tokens


def test_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the provider reports is, to 2 %, the FLOPs by hand over the measured times and the measured peak."""
    monkeypatch.setenv("MFU_SPANS", "auto")
    # Beside other tests two threads wait for one another, a peak that is measured so is doubted by the run after it,
    # and the next one is held against another.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page, threads = tmp_path / "page.html", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peaks, report = demo.run(page)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    peak = peaks.achievable["float32"].flops_per_s
    found = {(w.tenant, w.workload): w for w in report.workloads}
    assert set(found) == {
        ("acme", "bytegpt-train"),
        ("initech", "bytegpt-chat-single"),
        ("initech", "bytegpt-chat-batched"),
    }
    per_step = {
        "bytegpt-train": training_flops(16, 128),
        "bytegpt-chat-single": generation_flops(1),
        "bytegpt-chat-batched": generation_flops(16),
    }
    served = {of.workload: of.requests for of in report.inference}
    for (_, name), workload in found.items():
        assert workload.model_flop is not None
        assert workload.timed_steps is not None
        assert workload.timed_steps >= 2
        assert workload.gpu_hours is not None
        available = peak * workload.gpu_hours * 3600
        if name in served:
            # A request is a step of its prompt and one or, on a slow machine, more of its answer. All but the first,
            # whose shapes were new, are timed; of that one at most what was told apart after ten seconds.
            by_hand = workload.model_flop
            requests = workload.model_flop / per_step[name]
            assert served[name] - 1.02 <= requests <= served[name] + 0.02, f"{name}: {workload}\n{said}"
        else:
            by_hand = workload.timed_steps * per_step[name]
            assert workload.model_flop == pytest.approx(by_hand, rel=0.02)
        assert workload.mfu == pytest.approx(by_hand / available, rel=0.02)
        assert workload.expected_mfu is not None
        assert f"{name}: " in said
    assert report.fleet.mfu == pytest.approx(
        sum(w.model_flop or 0 for w in found.values()) / sum(w.available_flop or 0 for w in found.values())
    )
    assert report.fleet.owned_mfu is None
    assert "<html" in page.read_text()
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["page.html"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Refused before anything starts, with the remedy."""
    with pytest.raises(ConfigurationError, match="cannot be written"):
        demo.run(tmp_path / "nowhere" / "page.html")


def children(session_of: int) -> list[int]:
    """Processes whose parent is `session_of`, by Linux's process table."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == session_of:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's process table")
@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "2. a provider"),
        (signal.SIGTERM, "OTLP in on"),
        (signal.SIGINT, "step   0"),
        (signal.SIGTERM, "step   0"),
    ],
)
def test_stopping_leaves_nothing(number: signal.Signals, after: str, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM, whenever it comes: no process, no scratch folder, no page, no traceback."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "mfu_sdk.cli", "demo", "-o", str(tmp_path / "page.html")],
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    seen = ""
    for line in process.stdout:
        seen = line
        if after in line:
            break
    assert after in seen
    started = children(process.pid)
    process.send_signal(number)
    # A child that was being started at this moment must be found too.
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        started += children(process.pid)
    assert process.returncode == 130
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert "Traceback" not in errors
    assert not any(alive(pid) for pid in set(started))
    assert [p.name for p in scratch.iterdir() if p.name.startswith("mfu")] == []
    assert not (tmp_path / "page.html").exists()


def test_the_examples_are_found() -> None:
    """The scripts that the demo runs lie where it looks for them."""
    assert {"train.py", "serve.py", "model.py", "text.py"} <= {p.name for p in demo.examples_dir().iterdir()}
