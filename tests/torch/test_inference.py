"""`mfu.inference` around request handlers."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run import opening

from .conftest import Sink

WIDE, OUT = 64, 32
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


@pytest.fixture
def model() -> Iterator[nn.Module]:
    model = nn.Linear(WIDE, OUT, bias=False)
    yield model
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_requests_and_busy_periods_by_hand(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A request has the FLOPs of its model calls; one at a time, each is a busy period of its own."""

    @mfu.inference(model, name="classify", tokens=len, peaks=PEAKS)
    def handle(rows: int) -> torch.Tensor:
        with torch.no_grad():
            model(torch.randn(rows, WIDE))
            clock.advance(0.25)
            return model(torch.randn(rows, WIDE))

    for rows in (8, 8, 4, 8):
        assert handle(rows).shape == (rows, OUT)
    handle.run.close()
    forward = 2 * WIDE * OUT
    assert [r.model_flops for r in sink.requests] == [2 * rows * forward for rows in (8, 8, 4, 8)]
    assert [r.tokens for r in sink.requests] == [8, 8, 4, 8]
    assert [r.batch for r in sink.requests] == [8, 8, 4, 8]
    assert [r.model_calls for r in sink.requests] == [2] * 4
    # New shapes are counted as they come, which makes the time of their period unfit for statistics.
    assert [r.count_source for r in sink.steps] == ["measured", "cached", "measured", "cached"]
    assert [(s.phase, s.duration_s) for s in sink.steps] == [("inference", 0.25)] * 4
    assert sink.steps[1].mfu == 2 * 8 * forward / (1e9 * 0.25)
    summary = handle.run.summary()
    assert summary.mfu == 2 * (2 * 8 * forward) / (1e9 * 0.5)
    assert summary.tokens_per_s == 16 / 0.5


def test_overlapping_requests_share_the_device(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """Two requests at the same time are one busy period: its FLOPs add, its time does not."""
    both_inside = threading.Barrier(2)

    @mfu.inference(model, peaks=PEAKS)
    def handle(rows: int) -> None:
        both_inside.wait(timeout=120)
        with torch.no_grad():
            model(torch.randn(rows, WIDE))
        both_inside.wait(timeout=120)
        clock.advance(0.5)

    for _ in range(2):
        threads = [threading.Thread(target=handle, args=(rows,)) for rows in (8, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    handle.run.close()
    assert len(sink.requests) == 4
    assert sorted(r.model_flops or 0 for r in sink.requests[2:]) == [2 * 4 * WIDE * OUT, 2 * 8 * WIDE * OUT]
    assert [s.model_flops for s in sink.steps] == [2 * 12 * WIDE * OUT] * 2
    assert [s.duration_s for s in sink.steps] == [1.0, 1.0]
    assert sink.steps[1].batch_running == 6


def test_the_users_exception_passes(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """It comes out unchanged and its class is on the request's record."""

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        handle()
    handle.run.close()
    assert [r.error_type for r in sink.requests] == ["LookupError"]


def test_a_failing_model_call_is_not_a_count(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A call that raises while it is counted leaves no count behind for its shapes, and no mode."""

    @mfu.inference(model, peaks=PEAKS)
    def handle(width: int) -> None:
        model(torch.randn(2, width))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        handle(WIDE + 1)
    handle(WIDE)
    handle.run.close()
    assert sink.requests[0].model_flops is None
    assert sink.requests[1].model_flops == 2 * 2 * WIDE * OUT


def test_a_broken_tokens_callback_costs_the_tokens(
    model: nn.Module, clock: testing.FakeClock, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request's answer and FLOPs stand; its tokens are unknown."""
    monkeypatch.setenv("MFU_GUARD", "log")

    @mfu.inference(model, tokens=lambda out: out["usage"], peaks=PEAKS)
    def handle() -> torch.Tensor:
        return model(torch.randn(2, WIDE)).detach()

    assert handle().shape == (2, OUT)
    handle.run.close()
    assert sink.requests[0].tokens is None
    assert sink.requests[0].model_flops == 2 * 2 * WIDE * OUT


def test_the_callers_span_is_the_parent(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A request handled inside the user's own OpenTelemetry span becomes its child."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None:
        model(torch.randn(2, WIDE))

    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("user").start_as_current_span("request") as span:
        handle()
    handle()
    handle.run.close()
    assert sink.requests[0].parent_trace_id == span.get_span_context().trace_id
    assert sink.requests[0].parent_span_id == span.get_span_context().span_id
    assert sink.requests[1].parent_trace_id is None
    assert trace.get_current_span().get_span_context().is_valid is False


def test_bad_models_are_refused() -> None:
    """A model is needed, with parameters."""
    with pytest.raises(ConfigurationError, match=r"needs the torch\.nn\.Module"):
        mfu.inference(None)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigurationError, match="no parameters"):
        mfu.inference(nn.ReLU())


def test_disabled_leaves_the_handler_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_ENABLED=0 returns the very function that was decorated; its run says why it knows nothing."""
    monkeypatch.setenv("MFU_ENABLED", "0")

    def handle() -> int:
        return 1

    assert mfu.inference(model)(handle) is handle
    assert "MFU_ENABLED=0" in str(handle.run.summary())
    assert handle.run.close().mfu is None


def test_summary_before_the_first_request(model: nn.Module) -> None:
    """There is nothing to tell yet, and that is said."""

    @mfu.inference(model, name="idle")
    def handle() -> None: ...

    with pytest.raises(ConfigurationError, match="idle has handled no request yet"):
        handle.run.summary()


def test_another_hook_that_raises_leaves_no_mode(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A pre-hook of the user's that raises before ours has run leaves no counting mode on the thread, ever after."""
    fail = True

    def users(_module: nn.Module, _args: object) -> None:
        if fail:
            raise ValueError("the user's")

    own = model.register_forward_pre_hook(users)

    @mfu.inference(model, peaks=PEAKS)
    def handle(rows: int) -> None:
        model(torch.randn(rows, WIDE))

    for rows in (2, 3):
        with pytest.raises(ValueError, match="the user's"):
            handle(rows)
    fail = False
    handle(4)
    handle(4)
    assert torch._C._len_torch_dispatch_stack() == 0
    handle.run.close()
    own.remove()
    assert sink.requests[-1].model_flops == 2 * 4 * WIDE * OUT


def test_closing_while_a_call_is_counted(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A run that is closed in the middle of a counted call takes its mode off that thread when the request ends."""

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None:
        model(torch.randn(2, WIDE))

    closer = model.register_forward_pre_hook(lambda *_: handle.run.close() and None)
    handle()
    closer.remove()
    assert torch._C._len_torch_dispatch_stack() == 0


def test_requests_that_do_not_call_the_model(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """Time in which requests kept the device without work for it counts as available, with no FLOPs."""

    @mfu.inference(model, peaks=PEAKS)
    def handle(rows: int) -> None:
        clock.advance(0.5)
        if rows:
            model(torch.randn(rows, WIDE))

    for rows in (4, 4, 0):
        handle(rows)
    handle.run.close()
    assert [s.model_flops for s in sink.steps] == [2 * 4 * WIDE * OUT] * 2 + [0]
    assert handle.run.summary().mfu == 2 * 4 * WIDE * OUT / (1e9 * 1.0)


def test_busy_periods_count_requests(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """Every period says how many requests ended in it, how many failed, and how long they took together."""

    @mfu.inference(model, tokens=lambda _out: 3, peaks=PEAKS)
    def handle(*, fail: bool) -> None:
        model(torch.randn(2, WIDE))
        clock.advance(0.25)
        if fail:
            raise LookupError

    handle(fail=False)
    with pytest.raises(LookupError):
        handle(fail=True)
    handle.run.close()
    assert [(s.requests, s.requests_failed, s.tokens) for s in sink.steps] == [(1, 0, 3), (1, 1, 0)]
    assert [(s.requests_s, s.requests_running) for s in sink.steps] == [(0.25, 1.0)] * 2


def test_a_failed_opening_is_tried_once(
    model: nn.Module, sink: Sink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the run cannot be opened, requests are answered all the same, and the next ones do not try again."""
    monkeypatch.setenv("MFU_GUARD", "log")
    tries = []

    def broken(*_: object) -> None:
        tries.append(1)
        raise RuntimeError("ours")

    monkeypatch.setattr(opening, "identify", broken)

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> int:
        model(torch.randn(2, WIDE))
        return 7

    assert [handle() for _ in range(3)] == [7, 7, 7]
    assert len(tries) == 1
