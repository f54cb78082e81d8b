"""What only a GPU can show: calibration, event timing without synchronisation, counts of the CUDA kernels."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import mfu_sdk as mfu
from mfu_sdk.records import StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.run import opening

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "bytegpt"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import model

    yield model
    sys.modules.pop("model", None)


def test_calibration_is_plausible() -> None:
    """bf16 runs faster than fp32, every interval holds its value, and the user's random state is as it was."""
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    peaks = mfu.calibrate("cuda", budget_s=3.0)
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert peaks.memory is not None
    for rate in (*peaks.achievable.values(), peaks.memory):
        assert 0 < rate.low <= rate.flops_per_s <= rate.high
    full = peaks.achievable.get("float32") or peaks.achievable["tf32"]
    assert peaks.achievable["bfloat16"].flops_per_s > full.flops_per_s
    assert mfu.peaks("cuda").calibration_id == peaks.calibration_id


def test_theory_bounds_what_was_measured() -> None:
    """A listed GPU has a theoretical peak, and a product reaches a third of it at the least and no more than it."""
    peaks = mfu.calibrate("cuda", budget_s=3.0)
    assert "theory_missing" not in peaks.state, peaks.state
    share = peaks.achievable["bfloat16"].flops_per_s / peaks.theoretical["bfloat16"].flops_per_s
    assert 0.3 < share < 1.1


def test_steps_never_synchronise(example: Any) -> None:
    """Under torch's own alarm for synchronisations, uncounted steps of a monitored loop raise none."""
    model = example.ByteGPT(example.Config(layers=2)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    ids = torch.randint(256, (8, 128), device="cuda")
    records: list[StepRecord] = []
    peaks = mfu.calibrate("cuda", budget_s=1.0)
    with mfu.monitor(model, peaks=peaks, on_step=records.append) as run:
        for index in range(32):
            counted = index == 0 or index & (index - 1) == 0
            torch.cuda.set_sync_debug_mode("default" if counted else "error")
            try:
                with run.step(tokens=ids.numel()):
                    loss = F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten())
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len(records) == 32
    assert all(record.duration_s > 0 for record in records)
    mfu_of_run = run.summary().mfu
    assert mfu_of_run is not None
    assert 0 < mfu_of_run < 1


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
def test_attention_backends_agree(backend: SDPBackend) -> None:
    """Whatever kernel runs, a causal attention's model FLOPs are those of its visible pairs, backward twice forward."""
    batch, heads, length, width = 2, 4, 96, 64
    q, k, v = (
        torch.randn(batch, heads, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )

    def attend() -> None:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    found = mfu.count(attend)
    forward = 2 * 2 * batch * heads * width * (length * (length + 1) // 2)
    assert found.forward_flops == forward
    assert found.model_flops == 3 * forward
    assert found.uncounted == ()


def test_counts_equal_the_processors(example: Any) -> None:
    """A training step has the same model FLOPs on the GPU as on the processor."""
    ids = torch.randint(256, (2, 64))

    def count_on(device: str) -> int:
        model, inputs = example.ByteGPT(example.Config(layers=2)).to(device), ids.to(device)
        return mfu.count(
            lambda: F.cross_entropy(model(inputs)[0].flatten(0, 1), inputs.flatten()).backward()
        ).model_flops

    assert count_on("cuda") == count_on("cpu")


def test_requests_never_synchronise(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch's alarm, requests of known shapes raise none, and their phases are timed by the device's events."""
    told: dict[str, list[Any]] = {"steps": [], "requests": []}

    class Sink:
        def step(self, record: Any) -> None:
            told["steps"].append(record() if callable(record) else record)

        def inference(self, record: InferenceRecord) -> None:
            told["requests"].append(record)

        def calibration(self, *_: object) -> None: ...

        def overhead(self, seconds: float) -> None: ...

        def close(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(opening, "_telemetry", lambda _identity, _settings: Sink())
    model = example.ByteGPT(example.Config(layers=2)).cuda().eval()
    handle = mfu.inference(model, tokens=torch.Tensor.numel)(lambda prompts: model.generate(prompts, 8))
    prompts = torch.zeros(4, 64, dtype=torch.long, device="cuda")
    handle(prompts)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            handle(prompts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    summary = handle.run.close()  # type: ignore[attr-defined]  # set by the decorator
    assert len(told["requests"]) == 9
    assert [step.phase for step in told["steps"]] == ["prefill", "decode"] * 9
    assert all(step.duration_s > 0 for step in told["steps"])
    for request in told["requests"][1:]:
        assert [(phase.phase, phase.model_calls) for phase in request.phases] == [("prefill", 1), ("decode", 7)]
        assert request.time_to_first_token_s > 0
        assert request.time_per_output_token_s > 0
    assert summary.mfu is not None
    assert 0 < summary.mfu < 1
