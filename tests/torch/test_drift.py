"""Real faults in real training on a processor: each is found and given its true cause; a clean hour is silent.

Steps are timed by this process's CPU time, which real work takes and a neighbour takes little of; tolerance, warm-up
and budget are those of a test: evidence of about 10⁵ to 1. A loop ends when it has been told, so that a noisy machine
makes a test longer and not wrong.
"""

import contextlib
import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.drift.detector import Tuning
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.records import DriftEvent, Peaks, Rate
from mfu_sdk.run import attempts, drifting, opening
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.engine import Engine
from mfu_sdk.run.monitor import Monitor
from mfu_sdk.settings import Settings

from .conftest import Sink

RATE = Rate(1e11, 1e11, 1e11, "user", 0.0)
PEAKS = Peaks("cpu", {}, {"float32": RATE}, Rate(1e10, 1e10, 1e10, "user", 0.0), None, {})
TUNING = Tuning(0.1, block_steps=8, baseline_blocks=16, settle_steps=16)
BEFORE, AT_MOST = 180, 1500


def settings(**changed: Any) -> Settings:
    """The environment's, and so with a cache of the test's own."""
    return replace(Settings.from_env(), profile="off", **changed)


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests of this process have compiled keeps operators from being timed, and is not here."""
    monkeypatch.setattr("mfu_sdk.run.op_times._compiled_graphs", lambda: 0)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Several would wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _cpu_time(monkeypatch: pytest.MonkeyPatch, _one_thread: None) -> None:
    """Steps take the CPU time of this process, on one thread."""
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(time.process_time_ns))
    monkeypatch.setattr(opening, "tuning", lambda _settings: TUNING)
    # Each step is looked at, however short: the tests count steps.
    monkeypatch.setattr(drifting, "SHORT_S", 0.0)


class Attention(nn.Module):
    """Attention four times over, between two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        mixed, key, value = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.into(x).chunk(3, -1))
        for _ in range(4):
            mixed = F.scaled_dot_product_attention(mixed, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Deep(nn.Module):
    """Layers that keep their activations, or compute them again."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(3)
        )
        self.again = False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return x


def train(
    model: nn.Module,
    batch: Callable[[bool], Tensor],
    fault: Callable[[nn.Module], None] = lambda _model: None,
) -> list[DriftEvent]:
    """Train until the baseline stands, let the fault happen, train on: what was told."""
    told: list[DriftEvent] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def loader() -> Iterator[Tensor]:
        for index in range(BEFORE + AT_MOST):
            if index == BEFORE:
                fault(model)
            if after(told):
                return
            yield batch(index >= BEFORE)

    with mfu.monitor(model, peaks=PEAKS, settings=settings(drift_alarms_per_week=1e6), on_drift=told.append) as run:
        for inputs in run.batches(loader()):
            with run.step(tokens=inputs.shape[0]):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
    assert run.summary().drift == tuple(told)
    return told


def after(told: list[DriftEvent]) -> list[DriftEvent]:
    """The drops that were found after the fault."""
    return [event for event in told if event.kind == "drop" and event.found_step >= BEFORE]


def check(attempt: Callable[[], list[DriftEvent]], cause: str, evidence: str) -> None:
    """The fault is found and named, in one of three attempts: a neighbour's burst may come before it or hide it."""
    for _ in range(2):
        with contextlib.suppress(AssertionError):
            named(attempt(), cause, evidence)
            return
    named(attempt(), cause, evidence)


def named(told: list[DriftEvent], cause: str, evidence: str) -> None:
    assert after(told), told
    event = after(told)[0]
    assert event.cause == cause, event
    assert evidence in " ".join(event.evidence), event
    # Real steps are noisy: how well an onset is located is tested where it is known (tests/core/test_drift.py).
    assert BEFORE - 100 <= event.onset_step <= BEFORE + 40, event
    assert event.score >= 1


@pytest.mark.usefixtures("_cpu_time")
def test_batch_halved() -> None:
    """Half of the batch in as many steps: weights are read and updated for half of the FLOPs."""

    def attempt() -> list[DriftEvent]:
        return train(nn.Linear(256, 256), lambda late: torch.randn(8 if late else 16, 256))

    check(attempt, "configuration_drift", "batch: 16 → 8")


@pytest.mark.usefixtures("_cpu_time")
def test_dtype_changed() -> None:
    """From float32 to float64."""

    def double(model: nn.Module) -> None:
        model.double()

    def attempt() -> list[DriftEvent]:
        model = nn.Sequential(nn.Linear(192, 512), nn.ReLU(), nn.Linear(512, 192))
        return train(model, lambda late: torch.randn(64, 192, dtype=torch.float64 if late else torch.float32), double)

    check(attempt, "configuration_drift", "dtype.products: −float32 +float64")


@pytest.mark.usefixtures("_cpu_time")
def test_attention_without_its_kernel() -> None:
    """The backend is switched to math, which writes every score out."""

    class Switched(Attention):
        backend = SDPBackend.FLASH_ATTENTION

        def forward(self, x: Tensor) -> Tensor:
            with sdpa_kernel(self.backend):
                return super().forward(x)

    def switch(model: nn.Module) -> None:
        model.backend = SDPBackend.MATH  # type: ignore[assignment]

    def attempt() -> list[DriftEvent]:
        return train(Switched(), lambda _late: torch.randn(4, 64, 64), switch)

    check(attempt, "configuration_drift", "attention.operators: −aten::_scaled_dot_product_flash_attention_for_cpu")


@pytest.mark.usefixtures("_cpu_time")
def test_loader_slowed() -> None:
    """The loader does ten times the work for a batch."""

    def batch(late: bool) -> Tensor:
        inputs = torch.randn(32, 128)
        for _ in range(40 if late else 1):
            inputs = inputs.sort(-1).values
        return inputs

    def attempt() -> list[DriftEvent]:
        return train(nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128)), batch)

    check(attempt, "input_bound", "waiting for data went from")


@pytest.mark.usefixtures("_cpu_time")
def test_checkpointing_switched_on() -> None:
    """Activations are computed again in the backward pass: the model's FLOPs are what they were."""

    def switch(model: nn.Module) -> None:
        model.again = True  # type: ignore[assignment]

    def attempt() -> list[DriftEvent]:
        return train(Deep(), lambda _late: torch.randn(32, 128), switch)

    check(attempt, "configuration_drift", "recomputed: 0.0 → ")


def _threads_lowered(told: "Queue[list[DriftEvent]]") -> None:
    opening.clock_for = lambda _device: HostClock(time.thread_time_ns)  # type: ignore[assignment]
    opening.tuning = lambda _settings: TUNING  # type: ignore[assignment]
    torch.set_num_threads(2)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    told.put(train(model, lambda _late: torch.randn(256, 256), lambda _model: torch.set_num_threads(1)))


def test_threads_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """From two threads to one: the loop's own thread has all of the work to do, and its CPU time says so.

    In a process of its own, where threads sleep while they wait for one another: spinning is CPU time as well.
    """
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("spawn")

    def attempt() -> list[DriftEvent]:
        told: Queue[list[DriftEvent]] = context.Queue()
        child = context.Process(target=_threads_lowered, args=(told,))
        child.start()
        found = told.get(timeout=300)
        child.join(timeout=300)
        return found

    check(attempt, "configuration_drift", "threads: 2 → 1")


# --- what a run does with it -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    """The monitor's clock: it moves only when a test says so."""
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    return fake


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "tuning", lambda _settings: Tuning(block_steps=4, baseline_blocks=16, settle_steps=4))


def loop(
    clock: testing.FakeClock,
    durations_s: Iterable[float],
    *,
    using: Settings | None = None,
    on_drift: Callable[[DriftEvent], None] | None = None,
) -> Monitor:
    """A small model's steps, which take what they are told to, a little noise besides."""
    generator, model = random.Random(0), nn.Linear(4, 4)
    with mfu.monitor(model, name="work", peaks=PEAKS, settings=using or settings(), on_drift=on_drift) as run:
        for duration_s in durations_s:
            with run.step(tokens=2):
                model(torch.ones(2, 4)).sum().backward()
                clock.advance(duration_s * generator.uniform(0.98, 1.02))
    return run


def test_a_clean_hour_is_silent(clock: testing.FakeClock) -> None:
    """7,200 steps of half a second as a run is tuned, slow ones, evaluation and checkpoints among them."""
    generator, model = random.Random(1), nn.Linear(4, 4)
    told: list[DriftEvent] = []
    with mfu.monitor(model, peaks=PEAKS, settings=settings(), on_drift=told.append) as run:
        for index in range(7200):
            with run.step(tokens=2):
                model(torch.ones(2, 4)).sum().backward()
                slow = 20.0 if generator.random() < 0.02 else 1.0
                clock.advance(0.5 * slow * generator.lognormvariate(0, 0.03))
            if index % 50 == 49:
                for _ in range(5):
                    with run.step(phase="eval"), torch.no_grad():
                        model(torch.ones(8, 4))
                        clock.advance(0.1)
                with run.step(phase="checkpoint"):
                    clock.advance(9.0)
    assert told == []
    assert run.summary().drift == ()


def test_the_callback_hears_of_both_ends(clock: testing.FakeClock, quick: None) -> None:
    """Once when it is found and once when it is over; the summary has one event and a line."""
    told: list[DriftEvent] = []
    run = loop(clock, [0.5] * 200 + [0.75] * 150 + [0.5] * 200, on_drift=told.append)
    assert [event.recovered_step is None for event in told] == [True, False]
    first, last = told
    assert first.change == pytest.approx(-1 / 3, abs=0.03)
    assert abs(first.onset_step - 200) <= 8
    assert abs((last.recovered_step or 0) - 350) <= 8
    # Nothing but the time changed: 0.5 to 0.75 s is log(2/3) of compute.
    assert first.cause == "unknown"
    assert first.parts["compute"] == pytest.approx(math.log(2 / 3), abs=0.05)
    assert first.baseline == pytest.approx(3 / 2 * (first.current or 0), rel=0.05)
    assert run.summary().drift == (last,)
    assert "  drift        train -33" in str(run.summary())


def test_callbacks_come_later_too(clock: testing.FakeClock, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that `run.on_drift` has been given hears of what comes after; one that fails silences no other."""
    monkeypatch.setenv("MFU_GUARD", "log")
    generator, model = random.Random(0), nn.Linear(4, 4)
    early: list[DriftEvent] = []
    late: list[DriftEvent] = []
    with mfu.monitor(model, peaks=PEAKS, settings=settings(), on_drift=early.append) as run:
        with pytest.raises(ConfigurationError, match=r"on_drift\(3\): must be a function"):
            run.on_drift(3)  # type: ignore[arg-type]  # what is under test

        @run.on_drift
        def fails(_event: DriftEvent) -> None:
            raise RuntimeError("pager is down")

        for index, duration_s in enumerate([0.5] * 200 + [0.75] * 150 + [0.5] * 200):
            if index == 350:
                assert run.on_drift(late.append) == late.append
            with run.step(tokens=2):
                model(torch.ones(2, 4)).sum().backward()
                clock.advance(duration_s * generator.uniform(0.98, 1.02))
    assert [event.recovered_step is None for event in early] == [True, False]
    assert late == early[1:]


def test_a_failing_callback_is_contained(
    clock: testing.FakeClock, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user's callback raises does not reach the loop."""
    monkeypatch.setenv("MFU_GUARD", "log")

    def fails(_event: DriftEvent) -> None:
        raise RuntimeError("pager is down")

    run = loop(clock, [0.5] * 200 + [0.75] * 150, on_drift=fails)
    assert len(run.summary().drift) == 1


def test_off_watches_nothing(clock: testing.FakeClock, quick: None) -> None:
    """MFU_DRIFT=off."""
    run = loop(clock, [0.5] * 200 + [0.75] * 150, using=settings(drift="off"))
    assert run.summary().drift == ()


def test_a_named_run_goes_on_after_a_restart(clock: testing.FakeClock, quick: None) -> None:
    """The second attempt is slower from its first step on, and is held against what the first one was."""
    named = settings(run_id="named-run-of-drift")
    assert loop(clock, [0.5] * 200, using=named).summary().drift == ()
    attempts._opened.pop("named-run-of-drift")
    [event] = loop(clock, [0.75] * 150, using=replace(named, run_attempt=1)).summary().drift
    assert event.kind == "drop"
    # A run of another name knows nothing of it.
    assert loop(clock, [0.75] * 150).summary().drift == ()


def test_an_excursion_outlives_a_restart(clock: testing.FakeClock, quick: None, tmp_path: Path) -> None:
    """Found by the first attempt, told by the second as well, and recovered there; a broken state begins anew."""
    named = settings(run_id="another-run-of-drift", cache_dir=tmp_path)
    [found] = loop(clock, [0.5] * 200 + [0.75] * 100, using=named).summary().drift
    attempts._opened.pop("another-run-of-drift")
    told: list[DriftEvent] = []
    loop(clock, [0.75] * 40 + [0.5] * 150, using=replace(named, run_attempt=1), on_drift=told.append)
    assert [event.onset_step for event in told] == [found.onset_step] * 2
    assert abs((told[1].recovered_step or 0) - 40) <= 8
    [state] = (tmp_path / "drift").glob("run-*.json")
    state.write_text("{")
    attempts._opened.pop("another-run-of-drift")
    assert loop(clock, [0.75] * 100, using=replace(named, run_attempt=2)).summary().drift == ()


def test_a_restart_with_another_configuration(
    clock: testing.FakeClock, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower from its first step on, and a switch was set meanwhile: that is said, and by the third attempt again."""
    named = settings(run_id="a-run-of-two-configurations", cache_dir=tmp_path)
    assert loop(clock, [0.5] * 200, using=named).summary().drift == ()
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    found = []
    for number in (1, 2):
        attempts._opened.pop("a-run-of-two-configurations")
        found += loop(clock, [0.75] * 150, using=replace(named, run_attempt=number)).summary().drift
    assert [(event.cause, event.fingerprint_diff) for event in found] == [
        ("configuration_drift", ("env.NCCL_ALGO: not set → Tree",))
    ] * 2
    assert found[1] == found[0]


class Ticking(testing.FakeClock):
    """It moves by a microsecond with each reading, which is what an operator takes."""

    def __call__(self) -> int:
        self.advance(1e-6)
        return super().__call__()


@pytest.mark.usefixtures("_one_thread")
def test_another_kernel_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention without its kernel, in a run whose steps nobody may count out of turn: sampled steps tell of it."""
    monkeypatch.setattr(Engine, "_may_count", lambda _engine: False)
    monkeypatch.setattr(opening, "tuning", lambda _settings: TUNING)
    monkeypatch.setattr(drifting, "SHORT_S", 0.0)
    model, told = Attention(), list[DriftEvent]()
    fake = Ticking()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    using = replace(settings(drift_alarms_per_week=1e6), profile="auto")

    def steps(number: int, backend: SDPBackend, duration_s: float) -> None:
        for _ in run.batches(range(number)):
            with run.step(tokens=4), sdpa_kernel(backend):
                model(inputs).sum().backward()
                fake.advance(duration_s)

    inputs = torch.randn(4, 8, 64)
    with mfu.monitor(model, peaks=PEAKS, settings=using, on_drift=told.append) as run:
        # The next step that is counted in any case is the 256th.
        steps(180, SDPBackend.FLASH_ATTENTION, 5.0)
        steps(75, SDPBackend.MATH, 10.0)
    [event] = told
    assert event.cause == "configuration_drift"
    [kernels] = event.fingerprint_diff
    assert "−aten::_scaled_dot_product_flash_attention_for_cpu" in kernels
    assert "+aten::_softmax" in kernels
    # By that clock operators take microseconds, and it is the loop that takes twice as long.
    assert event.parts["host"] == pytest.approx(math.log(0.5), abs=0.01)


def test_autocast_switched_on(clock: testing.FakeClock, quick: None) -> None:
    """The step that is counted for its new shapes tells of it, and of the dtype that it makes."""
    model, told = nn.Linear(4, 4), list[DriftEvent]()
    with mfu.monitor(model, peaks=PEAKS, settings=settings(), on_drift=told.append) as run:
        for index in range(350):
            with run.step(tokens=2):
                with torch.autocast("cpu", enabled=index >= 200):
                    model(torch.ones(2, 4)).sum().backward()
                clock.advance((0.5 if index < 200 else 0.75) * (1 + index % 3 / 100))
    [event] = told
    assert event.cause == "configuration_drift"
    assert event.fingerprint_diff[:2] == ("autocast: off → bfloat16", "dtype.products: −float32 +bfloat16")


def test_the_fourth_run_needs_no_warm_up(clock: testing.FakeClock, quick: None, tmp_path: Path) -> None:
    """Three runs of a configuration are a baseline for the next; another batch is another configuration."""
    using = settings(cache_dir=tmp_path)
    for _ in range(3):
        assert loop(clock, [0.5] * 200, using=using).summary().drift == ()
    [event] = loop(clock, [0.75] * 100, using=using).summary().drift
    assert (event.kind, event.onset_step < 12) == ("drop", True)
    [file] = (tmp_path / "drift").glob("baseline-*.json")
    # The run that never was as the others is none of them.
    assert len(json.loads(file.read_text())["runs"]) == 3
    # As the provider serves it, with more in it.
    file.write_text(json.dumps({"fingerprint": "f", "reached": [], **json.loads(file.read_text())}))
    [event] = loop(clock, [0.75] * 100, using=using).summary().drift
    assert event.onset_step < 12
    file.write_text("{")
    assert loop(clock, [0.75] * 100, using=using).summary().drift == ()


def test_what_is_sent(clock: testing.FakeClock, quick: None, monkeypatch: pytest.MonkeyPatch, sink: Sink) -> None:
    """The way out hears of the configuration once, of the evidence, of the event and of its recovery."""
    loop(clock, [0.5] * 200 + [0.75] * 150 + [0.5] * 200)
    assert len(sink.configured_as) == 1
    assert len(sink.drifts) == 2
    assert max(scores.get("train", 0.0) for scores in sink.drift_scored) >= 0.0


def test_requests_that_become_slower(clock: testing.FakeClock, quick: None, sink: Sink) -> None:
    """A handler's requests: a batch of 2 and one of 16 by turns are load; both taking twice as long is drift."""
    model = nn.Linear(64, 64)

    @mfu.inference(model, name="chat", peaks=PEAKS)
    def handle(batch: int, slow: float) -> None:
        with torch.no_grad():
            model(torch.ones(batch, 64))
        clock.advance(slow * (0.1 if batch == 2 else 0.15) * generator.uniform(0.98, 1.02))

    generator = random.Random(0)
    for index in range(400):
        handle((2, 16)[index // 20 % 2], 1.0)
    assert sink.drifts == []
    for index in range(200):
        handle((2, 16)[index // 20 % 2], 2.0)
    handle.run.close()
    assert {(event.phase, event.measure, event.kind) for event in sink.drifts} == {("inference", "efficiency", "drop")}
    assert len(sink.drifts) == 2


@pytest.mark.parametrize("on_drift", [3, "print"])
def test_no_callback(on_drift: object) -> None:
    """What cannot be called is refused before anything starts."""
    with pytest.raises(ConfigurationError, match=r"on_drift=.*: must be a function of a DriftEvent"):
        mfu.monitor(nn.Linear(1, 1), on_drift=on_drift)  # type: ignore[arg-type]
