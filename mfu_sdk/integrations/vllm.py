"""vLLM: a stat logger that reports how busy an engine keeps its GPUs, and with what load.

    engine = AsyncLLM.from_engine_args(args, stat_loggers=[MFUStatLogger])
    engine = AsyncLLM.from_engine_args(args, stat_loggers=[partial(MFUStatLogger, name="chat")])

vLLM runs the model in processes of its own, so none of its calls is seen where a logger is told of them. What is
reported is what vLLM says after each step of the engine: requests that run and wait, the free share of the key-value
cache, tokens; and, where the server was started with `--enable-mfu-metrics`, its own estimate of the FLOPs and bytes of
the step, which is held against this GPU's peak. Its attention is priced in full (tokens × context), so the run's
convention is `full`, and its counts are `predicted`. Without that option FLOPs are unknown, and so is MFU.

The batch that would fit is what vLLM lets run at once, or what its cache would hold of sequences like those that run,
whichever is less. What MFU could be at that batch needs what a step reads of weights, which more sequences share; vLLM
tells it apart where VLLM_DEBUG_MFU_METRICS=1 is set too. So it is known without a promise of latency who under-batches.

Seconds in which the engine has work are steps of phase `inference`; a second without any is no one's. The step that
ends an idle time only begins the next period, since nobody says when it began.

Written against vLLM's published interface as of 2026-08 (`vllm/v1/metrics/loggers.py`, `stats.py`, `perf.py`), which
calls its statistics unstable: what is missing is unknown here, nothing raises. It has not been run inside of vLLM.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mfu_sdk.guard import shield
from mfu_sdk.records import Peaks, Rate, RunSummary
from mfu_sdk.requests import Load
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from mfu_sdk.run.clock import Mark
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.fitting import Fitting
    from mfu_sdk.run.ledger import Ledger

if TYPE_CHECKING:

    class StatLoggerBase:
        """vLLM's own."""

else:
    try:
        from vllm.v1.metrics.loggers import StatLoggerBase
    except ModuleNotFoundError:
        # Without vLLM there is nobody to ask whether this is one; with it, plugins are asked.
        StatLoggerBase = object

_NO_TIME = (0.0, 0.0, 0.0)
PERIOD_S = 1.0
"""A step of ours is as long as this at least, while the engine works."""


class MFUStatLogger(StatLoggerBase):
    """One engine's logger: vLLM makes it with (vllm_config, engine_index), and calls `record` after each step."""

    def __init__(
        self,
        vllm_config: Any,
        engine_index: int = 0,
        *,
        name: str | None = None,
        peaks: Peaks | None = None,
        device: str | None = None,
        settings: Settings | None = None,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`name`: the workload's; the served model's unless given. `peaks`: a denominator of your own, for one GPU.

        `device`: whose peak is the denominator, by default the current one of this process. Nothing is measured on it,
        since the model has it; `mfu calibrate` does so before the server starts. The run begins with the engine.
        """
        model = getattr(vllm_config, "model_config", None)
        served = getattr(model, "served_model_name", None)
        served = served[0] if isinstance(served, list | tuple) and served else served
        self._name = name or (str(served) if served else "vllm")
        self._dtype = str(getattr(model, "dtype", "bfloat16")).removeprefix("torch.")
        self._gpus = int(getattr(getattr(vllm_config, "parallel_config", None), "world_size", 1) or 1)
        self._most_sequences = getattr(getattr(vllm_config, "scheduler_config", None), "max_num_seqs", None)
        self.engine_index = engine_index
        self._peaks = peaks
        self._device = device
        self._settings = settings
        self._now_ns = now_ns
        self._ledger: Ledger | None = None
        self._summary: RunSummary | None = None
        self._index = 0
        self._start: Mark | None = None
        self._last_seen = 0
        self._running: float | None = None
        # Of the period under way.
        self._start_unix_ns = self._steps = self._tokens = self._finished = self._flops = self._bytes = 0
        self._running_ns = self._finished_s = 0.0
        self._load: Load | None = None
        self._told = True
        self._expected: tuple[float, float, float] | None = _NO_TIME
        # The same with as many sequences in each step as would fit, None as soon as one does not tell.
        self._fitting: Fitting | None = None
        self._fits = True

    # --- what vLLM calls ---------------------------------------------------------------------------------------------

    def log_engine_initialized(self) -> None:
        """The engine is there: the run begins."""
        settings = self._settings or Settings.from_env()
        if settings.enabled and self._ledger is None:
            with shield("opening a stat logger"):
                self._ledger = self._opened(replace(settings, calibrate="off"))
                atexit.register(self.close)

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """A step of the engine has ended; either of the two may be None."""
        if self._ledger is not None and self._summary is None:
            with shield("the stat logger"):
                self._record(self._ledger, scheduler_stats, iteration_stats)

    def log(self) -> None:
        """Nothing: what there is to say is said when it is known."""

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        """Asleep the engine makes no steps."""

    # --- the run -----------------------------------------------------------------------------------------------------

    def summary(self) -> RunSummary | None:
        """The totals so far, None before the engine was initialized."""
        return self._summary or (None if self._ledger is None else self._ledger.summary())

    def close(self) -> RunSummary | None:
        """End the run; vLLM does not say when an engine is shut down, so that the exit of the process does it."""
        atexit.unregister(self.close)
        if self._ledger is not None and self._summary is None:
            with shield("closing a stat logger"):
                if self._start is not None and self._steps:
                    self._end_period(self._ledger, self._now_ns())
                self._summary = self._ledger.close()
        return self._summary

    def _opened(self, settings: Settings) -> Ledger:
        from mfu_sdk.peak.calibrate import peaks as known_peaks
        from mfu_sdk.peak.device import resolve
        from mfu_sdk.run import opening
        from mfu_sdk.run.clock import HostClock
        from mfu_sdk.run.identity import identify
        from mfu_sdk.run.ledger import Ledger

        device = resolve(self._device)
        identity = identify(self._name, None, device, settings)
        peaks = self._peaks or known_peaks(device.torch_name, settings=settings)
        telemetry = opening._telemetry(identity, settings)
        ledger = Ledger(
            identity, peaks, HostClock(self._now_ns), devices=self._gpus, convention="full", telemetry=telemetry
        )  # fmt: skip
        if telemetry is not None:
            telemetry.observe(partial(opening._observer, ledger, device))
        return ledger

    def _record(self, ledger: Ledger, scheduler: Any, iteration: Any) -> None:
        now = self._now_ns()
        if scheduler is None:
            # A report of requests that have ended, without a step.
            if self._start is not None:
                self._requests(iteration)
            return
        if self._start is None:
            self._begin_period(now)
            self._last_seen = now
            self._running = _number(scheduler, "num_running_reqs")
            return
        self._steps += 1
        running = _number(scheduler, "num_running_reqs")
        # Until now it was what the step before had said.
        self._running_ns += (self._running or 0) * (now - self._last_seen)
        self._running, self._last_seen = running, now
        self._load = self._load_of(scheduler, running)
        self._requests(iteration)
        self._demand_of(ledger, getattr(scheduler, "perf_stats", None))
        # Not known is not idle.
        idle = running == 0 and not _waiting(scheduler)
        if idle or now - self._start >= PERIOD_S * 1e9:
            self._end_period(ledger, now)
            if idle:
                self._start = None
            else:
                self._begin_period(now)

    def _begin_period(self, now: int) -> None:
        self._start, self._start_unix_ns = now, time.time_ns()
        self._steps = self._tokens = self._finished = self._flops = self._bytes = 0
        self._running_ns = self._finished_s = 0.0
        self._load = None
        self._told = True
        self._expected = _NO_TIME
        self._fitting, self._fits = None, True

    def _end_period(self, ledger: Ledger, now: int) -> None:
        from mfu_sdk.run.work import Work

        assert self._start is not None
        lasted = now - self._start
        running = self._running_ns / lasted if lasted else None
        ledger.add(
            Work(
                index=self._index,
                phase="inference",
                start=self._start,
                end=now,
                start_unix_ns=self._start_unix_ns,
                demand=self._demand(),
                tokens=self._tokens,
                # vLLM puts all that runs into one call of the model.
                batch_running=running,
                requests=self._finished,
                requests_s=self._finished_s,
                requests_running=running,
                load=self._load,
                fitting=self._fitting if self._fits else None,
            )
        )
        self._index += 1

    def _demand(self) -> Demand | None:
        """None where a step of the period did not say what it cost."""
        from mfu_sdk.run.demand import Demand

        if not self._told or not self._steps:
            return None
        return Demand(
            model_flops=self._flops,
            hardware_flops=self._flops,
            by_dtype={self._dtype: self._flops},
            # It does not tell attention apart.
            attention_flops_exact=0,
            attention_flops_full=0,
            bytes_moved=self._bytes,
            priced_bytes=float(self._bytes),
            expected_s=None if self._expected is None else self._expected[0],
            source="predicted",
            interval_s=None if self._expected is None else self._expected[1:],
        )

    def _demand_of(self, ledger: Ledger, perf: Any) -> None:
        """Add what vLLM reckons that a step cost each GPU, over all of them."""
        flops = _number(perf, "num_flops_per_gpu")
        read, written = _number(perf, "num_read_bytes_per_gpu"), _number(perf, "num_write_bytes_per_gpu")
        if flops is None:
            self._told = False
            return
        moved = (read or 0) + (written or 0)
        self._flops += int(flops) * self._gpus
        self._bytes += int(moved) * self._gpus
        headline, memory = ledger.peaks.headline(self._dtype), ledger.peaks.memory
        if headline is None or memory is None or self._expected is None:
            self._expected, self._fits = None, False
            return
        rate = ledger.peaks.achievable.get(headline[0]) or headline[1]
        self._fit(perf, flops, moved, rate, memory)
        # The roofline of a step: all GPUs do their parts at once. Least and most where all rates are high, or low.
        value, least, most = self._expected
        self._expected = (
            value + max(flops / rate.flops_per_s, moved / memory.bytes_per_s),
            least + max(flops / rate.high, moved / memory.high),
            most + max(flops / rate.low, moved / memory.low),
        )

    def _fit(self, perf: Any, flops: float, moved: float, rate: Rate, memory: Rate) -> None:
        """Add what the step would take with as many sequences as fit: all but its weights grows with them."""
        from mfu_sdk.run.fitting import Fitting

        weights_bytes, sequences = _weights_bytes(perf), _sequences(perf)
        feasible = None if self._load is None else self._load.batch_feasible
        if weights_bytes is None or not sequences or not feasible:
            self._fits = False
            return
        times = max(1.0, feasible / sequences)
        grown_bytes = weights_bytes + max(0.0, moved - weights_bytes) * times
        seconds = max(flops * times / rate.flops_per_s, grown_bytes / memory.bytes_per_s)
        if seconds > 0:
            found = Fitting(flops * self._gpus * times, seconds)
            self._fitting = found if self._fitting is None else self._fitting + found

    def _requests(self, iteration: Any) -> None:
        if iteration is None:
            return
        prompts = _number(getattr(iteration, "prompt_token_stats", None), "computed")
        if prompts is None:
            prompts = _number(iteration, "num_prompt_tokens")
        self._tokens += int(prompts or 0) + int(_number(iteration, "num_generation_tokens") or 0)
        for request in getattr(iteration, "finished_requests", ()):
            self._finished += 1
            self._finished_s += _number(request, "e2e_latency") or 0.0

    def _load_of(self, scheduler: Any, running: float | None) -> Load:
        used = _number(scheduler, "kv_cache_usage")
        used = None if used is None else min(1.0, max(0.0, used))
        feasible = self._most_sequences
        if running and used:
            # As many of those that run now as the cache would hold.
            by_cache = running / used
            feasible = by_cache if feasible is None else min(feasible, by_cache)
        return Load(
            batch_feasible=feasible,
            queue_waiting=_waiting(scheduler),
            kv_cache_free_ratio=None if used is None else 1.0 - used,
        )


def _weights_bytes(perf: Any) -> float | None:
    """Bytes of weights that a step read on a GPU, whatever its batch; None where they are not told apart.

    Those of routed experts are left out: more sequences wake more of them, and how many there are is not said.
    """
    parts = getattr(getattr(perf, "debug_stats", None), "num_read_bytes_per_gpu_breakdown", None)
    if not isinstance(parts, Mapping):
        return None
    found = [part for name, part in parts.items() if "weight" in name and "routed" not in name]
    return float(sum(found)) if found else None


def _sequences(perf: Any) -> float | None:
    """Sequences of a step, None where that is not told: those that run are told without those that it has ended."""
    debug = getattr(perf, "debug_stats", None)
    prompts, answers = _number(debug, "num_prefill_requests"), _number(debug, "num_decode_requests")
    return None if prompts is None or answers is None else prompts + answers


def _waiting(scheduler: Any) -> float | None:
    """Requests that wait, for room or, told apart since 2026, for something else: an adapter's slot, a remote cache."""
    waiting = _number(scheduler, "num_waiting_reqs")
    return None if waiting is None else waiting + (_number(scheduler, "num_skipped_waiting_reqs") or 0)


def _number(holder: Any, name: str) -> float | None:
    found = getattr(holder, name, None)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None
