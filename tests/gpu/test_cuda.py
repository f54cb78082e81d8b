"""What only a GPU can show: calibration, event timing without synchronisation, counts of CUDA kernels and graphs."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import mfu_sdk as mfu
from mfu_sdk.records import StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.run import opening

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
    # What torch says wherever its alarm for synchronisations is set.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

AMPERE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
SINCE_AMPERE = pytest.mark.skipif(not AMPERE, reason="bf16 and flash attention need sm_80 or later")
EXAMPLE = Path(__file__).parents[2] / "examples" / "bytegpt"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import model

    yield model
    sys.modules.pop("model", None)


@SINCE_AMPERE
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


@SINCE_AMPERE
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


@SINCE_AMPERE
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


class Net(nn.Module):
    """A trunk with a head of one output."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.head(self.trunk(x)))


# 16 rows; the input wants no gradient, so the first layer has one product backward.
NET_FORWARD = 2 * 16 * (32 * 64 + 64)
NET_STEP = 2 * NET_FORWARD + 2 * 16 * 64


def warmed(step: Callable[[], Any]) -> None:
    """Runs `step` on a side stream, as torch's documentation asks for before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)


def monitored(model: nn.Module, make: Callable[[], Callable[[], Any]]) -> list[StepRecord]:
    """The records of five steps of what `make` makes, once the monitor lives."""
    records: list[StepRecord] = []
    with mfu.monitor(model, on_step=records.append) as run:
        step = make()
        for _ in range(5):
            with run.step():
                step()
    return records


def test_captured_step() -> None:
    """A step that is a graph's replay has the FLOPs of eager code; the capture reads nothing and is not disturbed."""
    model, x = Net().cuda(), torch.randn(16, 32, device="cuda")

    def train() -> None:
        model(x).square().sum().backward()

    def make() -> Callable[[], None]:
        warmed(train)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train()
        return lambda: graph.replay()

    records = monitored(model, make)
    assert [record.model_flops for record in records] == [NET_STEP] * 5
    assert mfu.count(train).model_flops == NET_STEP


def test_captured_step_with_its_optimizer() -> None:
    """Unmarked steps, then the capture of one as a whole: no mark of ours breaks it, and each replay costs a step."""
    model, x = Net().cuda(), torch.randn(16, 32, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)

    def train() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
        optimizer.step()

    def make() -> Callable[[], None]:
        warmed(train)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train()
        return lambda: graph.replay()

    assert [record.model_flops for record in monitored(model, make)][-5:] == [NET_STEP] * 5


def test_the_watched_model_graphed() -> None:
    """make_graphed_callables takes the model itself, whose hooks of ours are off meanwhile."""
    model, x = Net().cuda(), torch.randn(16, 32, device="cuda")

    def make() -> Callable[[], None]:
        torch.cuda.make_graphed_callables(model, (x,))
        return lambda: model(x).square().sum().backward()

    assert [record.model_flops for record in monitored(model, make)] == [NET_STEP] * 5


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_in_the_engines_thread(reentrant: bool) -> None:
    """On a GPU the backward runs in a thread of the engine's: modules and stages are those of the processor."""

    def found(device: str) -> tuple[int, int, dict[str, int]]:
        model, x = Net().to(device), torch.randn(16, 32, device=device, requires_grad=True)

        def train() -> None:
            checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()

        count = mfu.count(train)
        return count.model_flops, count.recompute_flops, dict(count.by_module)

    assert found("cuda") == found("cpu")


def test_graph_that_was_captured_unseen() -> None:
    """What a graph holds that was captured before anyone watched is not known, and the count says so."""
    x = torch.randn(64, 64, device="cuda")
    warmed(lambda: x @ x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _ = x @ x
    counted = mfu.count(lambda: graph.replay())
    assert [entry.op for entry in counted.uncounted] == ["cuda::graph_replay"]
    assert (counted.model_flops, counted.coverage) == (0, 0.0)


def test_masks_in_a_capture() -> None:
    """A mask on the device is not read while a stream is captured: the capture succeeds, its attention is uncounted."""
    q = torch.randn(1, 2, 32, 64, device="cuda")
    mask = torch.ones(32, 32, dtype=torch.bool, device="cuda").tril()

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    def captured() -> None:
        warmed(attend)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found.append(attend())
        graph.replay()

    found: list[Tensor] = []
    counted = mfu.count(captured)
    torch.cuda.synchronize()
    torch.testing.assert_close(found[0], attend())
    assert counted.uncounted
    assert counted.coverage < 1
    # What ran before the capture, with its mask read.
    assert counted.attention_flops_exact == 3 * 4 * 2 * 64 * (32 * 33 // 2)


def test_graphed_callables() -> None:
    """make_graphed_callables replays in forward and backward: each is counted in its stage."""
    model, x = Net().cuda(), torch.randn(16, 32, device="cuda")

    def make() -> Callable[[], None]:
        fast = torch.cuda.make_graphed_callables(model.trunk, (x,))
        return lambda: model.head(fast(x)).square().sum().backward()

    assert [record.model_flops for record in monitored(model, make)] == [NET_STEP] * 5
    model = Net().cuda()
    assert {entry.op for entry in mfu.count(make()).uncounted} == {"cuda::graph_replay"}


@pytest.mark.usefixtures("_launches")
@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_step(mode: str) -> None:
    """Compiled code counts as eager does, its graphs warming up, captured or replayed; each call once."""
    torch.compiler.reset()
    model, x = Net().cuda(), torch.randn(16, 32, device="cuda")
    fast = torch.compile(model, mode=mode)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        # Gradients lie in the graphs' own memory, which the next replay writes: torch refuses to add to such.
        model.zero_grad()
        fast(x).square().sum().backward()

    for _ in range(5):
        counted = mfu.count(step)
        assert (counted.forward_flops, counted.model_flops) == (NET_FORWARD, NET_STEP)
        assert counted.uncounted == ()
    assert [record.model_flops for record in monitored(model, lambda: step)] == [NET_STEP] * 5


def test_requests_never_synchronise(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch's alarm, requests of known shapes raise none, and their phases are timed by the device's events."""
    told: dict[str, list[Any]] = {"steps": [], "requests": []}

    class Sink:
        """Keeps steps and requests; whatever else a run tells of itself it lets pass."""

        recorder = None

        def add_steps(self, records: Any, rows: Any) -> None:
            told["steps"].extend(record() if callable(record) else record for record in records)

        def inference(self, record: InferenceRecord) -> None:
            told["requests"].append(record)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None

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
