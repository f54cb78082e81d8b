"""From a server that tells its load to the cause on its provider's page: the demo's own handler, over real OTLP.

Run as a script this file is that server. Its device's rates are given, so that what a batch allows is known.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOM = 16


def serve() -> None:
    """Answer four prompts one at a time, and twice sixteen at once."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "bytegpt"))
    from model import ByteGPT, Config
    from serve import handler

    from mfu_sdk.export import worker
    from mfu_sdk.records import Peaks, Rate
    from mfu_sdk.run import opening

    # On a machine that does other things too, two seconds may not be enough to be heard.
    worker.EXIT_S = worker.LINGER_S = 60.0  # type: ignore[misc]
    rates = Rate(80e9, 80e9, 80e9, "calibrated", 0.0), Rate(10e9, 10e9, 10e9, "calibrated", 0.0)
    opening._peaks = lambda *_: Peaks("cpu", {}, {"float32": rates[0]}, rates[1], None, {})
    torch.set_num_threads(1)
    model = ByteGPT(Config()).eval()
    prompts = torch.randint(256, (ROOM, 64))
    for name, batch, requests in (("single", 1, 4), ("batched", ROOM, 3)):
        complete = handler(model, name, ROOM)
        complete.run.open()  # type: ignore[attr-defined]  # set by the decorator
        for _ in range(requests):
            complete(prompts[:batch])
            # As it would be a second later, without the second.
            complete.run.load.sample()  # type: ignore[attr-defined]  # as above
        complete.run.close()  # type: ignore[attr-defined]  # as above


def test_who_under_batches_is_told_so(tmp_path: Path) -> None:
    """One sequence a call where sixteen would fit, and nobody waits: named with its loss, and only of that workload.

    By roofline a decoded token of one sequence is bound by the weights that are read for it: sixteen share them.
    """
    from mfu_sdk import demo
    from mfu_sdk.provider import report

    tokens = {name: f"token-of-{name}-{'x' * 20}" for name in ("acme", "initech", "ops")}
    with demo._provider(tmp_path, tokens) as (otlp_url, web_url):
        env = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{tokens['initech']}",
            "MFU_CACHE_DIR": str(tmp_path / "cache"),
        }
        said = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr[-4000:]
        found = report.from_url(web_url, tokens["ops"], since="1h")
    [cause] = [each for each in found.causes if each.cause == "under_batched_inference"]
    assert (cause.tenant, cause.workload) == ("initech", "single")
    assert cause.evidence["batch_running"] == 1
    assert cause.evidence["batch_feasible"] == ROOM
    assert cause.evidence["queue_waiting"] == 0
    # 16 sequences at 80 GFLOP/s and 10 GB/s: the roofline's own words for what is lost.
    now, then = (float(cause.evidence[name]) for name in ("expected_mfu", "expected_mfu_at_feasible_batch"))
    assert cause.loss_share == pytest.approx(1 - now / then)
    assert cause.loss_share > 0.5


if __name__ == "__main__":
    serve()
