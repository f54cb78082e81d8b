"""A run that was killed and restarted, for real: two processes, one provider, and what of the first was in vain."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mfu_sdk.provider import attempts, rollup
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.serve import Server

pytestmark = pytest.mark.slow

TRAIN = """
import sys
import torch
from torch import nn
import mfu_sdk as mfu
from mfu_sdk.export import worker
from mfu_sdk.records import Peaks, Rate

# On a machine that does other things too, two seconds may not be enough to be heard.
worker.EXIT_S = 60.0
rate = Rate(1e12, 9e11, 1.1e12, "user", 0.0)
model = nn.Linear(256, 256)
with mfu.monitor(model, name="gpt", peaks=Peaks("cpu", {}, {"float32": rate}, rate, None, {}),
                 start_step=int(sys.argv[1])) as run:
    for _ in range(int(sys.argv[2])):
        with run.step(tokens=16):
            model(torch.ones(16, 256)).sum().backward()
"""


def test_what_was_in_vain(tmp_path: Path) -> None:
    """Sixty steps, and a restart from the checkpoint at 40 that does as many: a third of the first attempt was lost.

    The interval of the peak goes all the way too: the expected MFU is a tenth lower and higher at its ends.
    """
    server = Server(tmp_path / "data", http=("127.0.0.1", 0), web=("127.0.0.1", 0))
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    try:
        assert ready.wait(120)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MFU_", "OTEL_"))}
        env |= {
            "MFU_PROVIDER_ENDPOINT": "http://{}:{}".format(*server.http_address), "MFU_RUN_ID": "run-1",
            "MFU_RECORDER_DIR": str(tmp_path), "MFU_CACHE_DIR": str(tmp_path), "MFU_GUARD": "raise",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        for attempt, first in ((0, 0), (1, 40)):
            command = [sys.executable, "-c", TRAIN, str(first), "60"]
            done = subprocess.run(
                command, env=env | {"MFU_RUN_ATTEMPT": str(attempt)}, capture_output=True, text=True, timeout=300,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-4000:]
        span = Range(0, 2**62)
        usages = rollup.usages(server._store, span, None)
        lost = attempts.redone(server._store, span).lost
    finally:
        server.stop()
        serving.join(120)
    (usage,) = [usage for usage in usages if usage.phase == "train"]
    assert usage.sums.steps == 120
    (found,) = lost.values()
    assert found.tokens == pytest.approx(20 * 16)
    assert usage.sums.device_s is not None
    assert 0 < found.seconds < usage.sums.device_s
    assert usage.sums.expected_mfu is not None
    assert usage.sums.expected_low_mfu == pytest.approx(0.9 * usage.sums.expected_mfu)
    assert usage.sums.expected_high_mfu == pytest.approx(1.1 * usage.sums.expected_mfu)
