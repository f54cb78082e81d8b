"""The vLLM stat logger, told what vLLM tells: stand-ins with the names of its published interface (2026-08)."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from mfu_sdk import testing
from mfu_sdk.integrations.vllm import MFUStatLogger
from mfu_sdk.records import Peaks, Rate, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.settings import Settings


@dataclass
class DebugPerfStats:
    num_prefill_requests: int = 0
    num_decode_requests: int = 0
    num_read_bytes_per_gpu_breakdown: dict[str, int] | None = None


@dataclass
class PerfStats:
    num_flops_per_gpu: int = 0
    num_read_bytes_per_gpu: int = 0
    num_write_bytes_per_gpu: int = 0
    debug_stats: DebugPerfStats | None = None


@dataclass
class SchedulerStats:
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_skipped_waiting_reqs: int = 0
    step_counter: int = 0
    current_wave: int = 0
    kv_cache_usage: float = 0.0
    encoder_cache_usage: float = 0.0
    perf_stats: PerfStats | None = None


@dataclass
class PromptTokenStats:
    computed: int = 0
    cached_tokens: int = 0
    total: int = 0


@dataclass
class FinishedRequestStats:
    finish_reason: str = "stop"
    e2e_latency: float = 0.0


@dataclass
class IterationStats:
    num_generation_tokens: int = 0
    prompt_token_stats: PromptTokenStats = field(default_factory=PromptTokenStats)
    finished_requests: list[FinishedRequestStats] = field(default_factory=list)

    @property
    def num_prompt_tokens(self) -> int:
        return self.prompt_token_stats.total


@dataclass
class ModelConfig:
    served_model_name: Any = "llama"
    dtype: str = "torch.bfloat16"


@dataclass
class ParallelConfig:
    world_size: int = 2


@dataclass
class SchedulerConfig:
    max_num_seqs: int = 256


@dataclass
class VllmConfig:
    model_config: ModelConfig = field(default_factory=ModelConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)


class Sink:
    """Stands where the exporter stands."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    recorder = None

    def add_steps(self, records: Any, rows: object) -> None:
        self.steps.extend(record() if callable(record) else record for record in records)

    def overhead(self, seconds: float) -> None: ...

    def on_termination(self, then: object) -> None: ...

    def observe(self, make: object) -> None: ...

    def close(self, summary: object, *, error_type: str | None = None) -> None: ...


RATE = 1e12
PEAKS = Peaks(
    "cpu", {"bfloat16": Rate(RATE, RATE, RATE, "user", 0.0)}, {}, Rate(1e11, 1e11, 1e11, "user", 0.0), None, {}
)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    found = Sink()
    monkeypatch.setattr(opening, "_telemetry", lambda _identity, _settings: found)
    return found


@pytest.fixture
def clock() -> testing.FakeClock:
    return testing.FakeClock()


@pytest.fixture
def logger(sink: Sink, clock: testing.FakeClock) -> MFUStatLogger:
    """As vLLM makes one: a factory called with its configuration and the engine's number."""
    factory = partial(MFUStatLogger, peaks=PEAKS, device="cpu", now_ns=clock)
    made = factory(VllmConfig(), 0)
    made.log_engine_initialized()
    return made


def busy(flops: int | None = 10**10, **given: Any) -> SchedulerStats:
    perf = None if flops is None else PerfStats(flops, 10**9, 10**9)
    return SchedulerStats(**{"num_running_reqs": 8, "kv_cache_usage": 0.25, "perf_stats": perf} | given)


def test_a_second_by_hand(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """Ten steps of a tenth of a second on two GPUs: FLOPs, tokens, load and ratios of the second."""
    logger.record(busy(), IterationStats(), None, 0)
    for _ in range(10):
        clock.advance(0.1)
        tokens = IterationStats(8, PromptTokenStats(computed=2, cached_tokens=5, total=7))
        logger.record(busy(num_waiting_reqs=2, num_skipped_waiting_reqs=1), tokens, mm_cache_stats=None, engine_idx=0)
    [step] = sink.steps
    assert step.phase == "inference"
    assert step.duration_s == pytest.approx(1.0)
    assert step.model_flops == 10 * 2 * 10**10
    assert step.mfu == pytest.approx(10 * 10**10 / (RATE * 1.0))
    # 2 GB at 100 GB/s take 20 ms, 10 GFLOP at 1 TFLOP/s take 10: memory binds, and allows half of the peak.
    assert step.expected_mfu == pytest.approx(0.5)
    assert step.tokens == 10 * (8 + 2)
    assert (step.batch_running, step.requests_running, step.queue_waiting) == (pytest.approx(8), pytest.approx(8), 3)
    assert step.kv_cache_free_ratio == 0.75
    # Eight take a quarter of the cache, so 32 would fill it.
    assert step.batch_feasible == 32
    assert (step.count_source, step.convention) == ("predicted", "full")
    summary = logger.summary()
    assert summary is not None
    assert summary.name == "llama"


def test_an_idle_time_is_no_ones(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """The engine runs dry after 0.3 s and wakes an hour later: two periods, with nothing of the hour in them."""
    logger.record(busy(), None)
    clock.advance(0.3)
    logger.record(busy(num_running_reqs=0), IterationStats(8))
    clock.advance(3600)
    logger.record(busy(), None)
    clock.advance(0.5)
    logger.record(busy(num_running_reqs=0), IterationStats(8))
    assert [step.duration_s for step in sink.steps] == pytest.approx([0.3, 0.5])
    assert [step.model_flops for step in sink.steps] == [2 * 10**10] * 2


def test_requests_that_ended(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """Their number and their time together; reports without a step add to it."""
    logger.record(busy(), None)
    clock.advance(0.6)
    logger.record(busy(), IterationStats(finished_requests=[FinishedRequestStats(e2e_latency=2.0)]))
    logger.record(None, IterationStats(finished_requests=[FinishedRequestStats("abort", 0.5)]))
    clock.advance(0.6)
    logger.record(busy(num_running_reqs=4), IterationStats())
    [step] = sink.steps
    assert (step.requests, step.requests_s) == (2, 2.5)
    assert step.requests_running == pytest.approx(8)


def test_without_its_estimate_flops_are_unknown(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """A server without `--enable-mfu-metrics`: the load is told, MFU is not."""
    logger.record(busy(None), None)
    clock.advance(1.0)
    logger.record(busy(None), IterationStats(8))
    [step] = sink.steps
    assert (step.model_flops, step.mfu) == (None, None)
    assert (step.tokens, step.kv_cache_free_ratio) == (8, 0.75)


def test_what_a_version_does_not_tell_is_unknown(sink: Sink, clock: testing.FakeClock) -> None:
    """Statistics and a configuration without any name that we know raise nothing, and claim nothing."""
    logger = MFUStatLogger(object(), 3, peaks=PEAKS, device="cpu", now_ns=clock)
    logger.log_engine_initialized()
    logger.record(object(), object())
    clock.advance(1.0)
    logger.record(object(), object())
    logger.record(busy(), None)
    clock.advance(1.0)
    logger.record(object(), object())
    logger.log()
    logger.record_sleep_state(1, 0)
    assert [step.mfu for step in sink.steps] == [None, None]
    assert sink.steps[0].kv_cache_free_ratio is None
    assert sink.steps[0].queue_waiting is None


def test_its_errors_stay_with_us(
    logger: MFUStatLogger, clock: testing.FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails in the logger is logged once, and the engine goes on."""
    monkeypatch.setenv("MFU_GUARD", "log")

    class Broken:
        @property
        def num_running_reqs(self) -> int:
            raise RuntimeError("mine")

    with caplog.at_level(logging.WARNING):
        logger.record(busy(), None)
        logger.record(Broken(), None)
    assert "the stat logger failed" in caplog.text


def test_closed_once(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """The period under way is told at the end; what comes after it is nothing."""
    logger.record(busy(), None)
    clock.advance(0.4)
    logger.record(busy(), IterationStats(8))
    summary = logger.close()
    assert summary is not None
    assert summary.steps == 1
    logger.record(busy(), IterationStats(8))
    assert logger.close() is summary
    assert [step.duration_s for step in sink.steps] == pytest.approx([0.4])


def test_disabled(clock: testing.FakeClock) -> None:
    """MFU_ENABLED=0: every call is nothing."""
    logger = MFUStatLogger(VllmConfig(), settings=Settings(enabled=False), now_ns=clock)
    logger.log_engine_initialized()
    logger.record(busy(), IterationStats())
    assert logger.summary() is None
    assert logger.close() is None


def test_who_waits_for_something_else_waits_too(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """Nothing runs, and a request stands for its cache to come from elsewhere: the engine is not idle."""
    logger.record(busy(), None)
    clock.advance(0.4)
    logger.record(busy(num_running_reqs=0, num_skipped_waiting_reqs=1), IterationStats(8))
    clock.advance(0.6)
    logger.record(busy(), None)
    [step] = sink.steps
    assert step.duration_s == pytest.approx(1.0)


PARTS = {
    "attn.qkv_weight": 3 * 10**8, "attn.attn_input": 10**8, "ffn.dense_up_gate_weights": 4 * 10**8,
    "ffn.routed_up_gate_weights": 10**8, "unembed.weight": 10**8,
}  # fmt: skip
"""Bytes that a step reads on a GPU: 0.8 GB of weights, 0.1 of experts' and 0.1 of anything else."""


def debugged(sequences: int = 8, parts: dict[str, int] | None = None) -> PerfStats:
    """Two GB a step, of which one is written, with what VLLM_DEBUG_MFU_METRICS adds."""
    return PerfStats(10**10, 10**9, 10**9, DebugPerfStats(0, sequences, PARTS if parts is None else parts))


def test_who_under_batches_needs_no_promise(logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock) -> None:
    """Eight of 32: weights are read once for all of them, and everything else grows fourfold, with that of experts.

    Four times 10 GFLOP take 40 ms; 0.8 GB and four times 1.2 GB take 56. Now it is 20 ms for a quarter of the FLOPs.
    """
    logger.record(busy(), None)
    clock.advance(0.5)
    logger.record(busy(perf_stats=debugged()), IterationStats(8))
    clock.advance(0.5)
    logger.record(busy(perf_stats=debugged()), IterationStats(8))
    [step] = sink.steps
    assert (step.batch_feasible, step.latency_target_s) == (32, None)
    assert step.expected_mfu == pytest.approx(0.5)
    assert step.expected_feasible_mfu == pytest.approx(40 / 56)


@pytest.mark.parametrize(
    "perf",
    [PerfStats(10**10, 10**9, 10**9), debugged(parts={}), debugged(sequences=0)],
    ids=["no debug", "no weights", "no sequences"],
)
def test_what_it_could_be_needs_the_weights(
    perf: PerfStats, logger: MFUStatLogger, sink: Sink, clock: testing.FakeClock
) -> None:
    """One step of the second that does not tell them apart, or does not tell its sequences, and it is not known."""
    logger.record(busy(), None)
    clock.advance(0.5)
    logger.record(busy(perf_stats=debugged()), IterationStats(8))
    clock.advance(0.5)
    logger.record(busy(perf_stats=perf), IterationStats(8))
    [step] = sink.steps
    assert step.batch_feasible == 32
    assert step.expected_feasible_mfu is None
