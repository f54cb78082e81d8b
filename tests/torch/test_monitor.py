"""`mfu.monitor` in the loops that people write."""

import logging
import random
from collections.abc import Iterator
from contextlib import nullcontext
from math import isqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import guard, testing
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.records import Peaks, Rate, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import HostClock

BATCH, WIDE, OUT = 16, 64, 32
FORWARD = 2 * BATCH * WIDE * OUT
# The input needs no gradient, so the backward pass is the product for the weight alone.
TRAIN = 2 * FORWARD
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    """The monitor's clock: it moves only when a test says so."""
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    guard._said.clear()
    return fake


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(WIDE, OUT, bias=False)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train_once(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int = BATCH) -> None:
    optimizer.zero_grad()
    model(torch.randn(batch, WIDE)).square().mean().backward()
    optimizer.step()


def test_marked_steps_by_hand(model: nn.Module, clock: testing.FakeClock) -> None:
    """FLOPs, durations and ratios of marked steps are those of a calculation by hand."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(6):
            with run.step(tokens=BATCH):
                train_once(model, optimizer)
                clock.advance(0.5)
    assert [r.index for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r.model_flops for r in records] == [TRAIN] * 6
    assert [r.duration_s for r in records] == [0.5] * 6
    # Indices 0, 1, 2, 4, 8, … are counted; the rest cost a look-up.
    assert [r.count_source for r in records] == ["measured", "measured", "measured", "cached", "measured", "cached"]
    assert records[3].mfu == TRAIN / (1e9 * 0.5)
    assert records[3].available_flops == 5e8
    summary = run.summary()
    assert (summary.steps, summary.timed_steps) == (6, 2)
    assert summary.mfu == 2 * TRAIN / (1e9 * 1.0)
    assert summary.tokens_per_s == 2 * BATCH / 1.0
    assert sum(summary.waterfall.values()) == pytest.approx(1, abs=1e-9)


def test_the_mode_is_on_for_few_steps(model: nn.Module, clock: testing.FakeClock) -> None:
    """Of 70 steps of one shape the counting mode sees those with index 0, 1, 2, 4, 8, 16, 32 and 64."""
    depths: list[int] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS) as run:
        for _ in range(70):
            with run.step():
                depths.append(torch._C._len_torch_dispatch_stack())
                train_once(model, optimizer)
    assert [i for i, depth in enumerate(depths) if depth] == [0, 1, 2, 4, 8, 16, 32, 64]


def test_data_wait_is_part_of_its_step(model: nn.Module, clock: testing.FakeClock) -> None:
    """A step runs from its predecessor's end to its own: 0.3 s of waiting and 0.7 s of work are one second."""

    def loader() -> Iterator[torch.Tensor]:
        for _ in range(4):
            clock.advance(0.3)
            yield torch.randn(BATCH, WIDE)

    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in run.batches(loader()):
            with run.step():
                train_once(model, optimizer)
                clock.advance(0.7)
    assert [r.data_wait_s for r in records] == pytest.approx([0.3] * 4)
    assert [r.duration_s for r in records] == pytest.approx([1.0] * 4)
    assert run.summary().waterfall["data_wait"] == pytest.approx(0.3)


def test_unmarked_steps_end_with_the_optimizer(model: nn.Module, clock: testing.FakeClock) -> None:
    """An unchanged loop: a step ends at the first forward pass after an optimizer step; the last at that step."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for _ in range(5):
            train_once(model, optimizer)
            clock.advance(0.25)
    assert [r.model_flops for r in records] == [TRAIN] * 5
    assert [r.duration_s for r in records] == [0.25] * 4 + [0.0]
    assert {r.phase for r in records} == {"train"}


def test_gradient_accumulation_is_one_step(model: nn.Module, clock: testing.FakeClock) -> None:
    """Three forward and backward passes before one optimizer step make one step with three times the FLOPs."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(3):
                model(torch.randn(BATCH, WIDE)).square().mean().backward()
            optimizer.step()
    assert [r.model_flops for r in records] == [3 * TRAIN] * 4


def test_unmarked_evaluation_is_a_step_of_its_own(model: nn.Module, clock: testing.FakeClock) -> None:
    """Forward passes without gradients between training steps are one step of phase eval, forward FLOPs only."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        train_once(model, optimizer)
        with torch.no_grad():
            for _ in range(2):
                model(torch.randn(BATCH, WIDE))
        train_once(model, optimizer)
        with torch.no_grad():
            for _ in range(2):
                model(torch.randn(BATCH, WIDE))
    assert [(r.phase, r.model_flops) for r in records] == [
        ("train", TRAIN),
        ("eval", 2 * FORWARD),
        ("train", TRAIN),
        ("eval", 2 * FORWARD),
    ]


def test_new_shapes_are_counted_when_they_come(model: nn.Module, clock: testing.FakeClock) -> None:
    """A last, smaller batch between the counted indices has its own count, not its neighbour's."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for batch in [BATCH] * 5 + [4] + [BATCH, 4]:
            with run.step():
                train_once(model, optimizer, batch)
    assert [r.model_flops for r in records] == [TRAIN] * 5 + [TRAIN // 4, TRAIN, TRAIN // 4]
    assert [r.count_source for r in records[5:]] == ["measured", "cached", "cached"]


def test_the_first_optimizer_decides_or_the_one_given(clock: testing.FakeClock) -> None:
    """Of two optimizers that take turns, the one given ends the steps."""
    body, head = nn.Linear(WIDE, OUT, bias=False), nn.Linear(OUT, 1, bias=False)
    model = nn.Sequential(body, head)
    first, second = make_optimizer(body), make_optimizer(head)
    records: list[StepRecord] = []
    with mfu.monitor(model, optimizer=second, peaks=PEAKS, on_step=records.append):
        for _ in range(3):
            model(torch.randn(BATCH, WIDE)).sum().backward()
            first.step()
            model(torch.randn(BATCH, WIDE)).sum().backward()
            second.step()
    assert len(records) == 3


def test_without_a_model_all_work_counts_as_a_sample(clock: testing.FakeClock) -> None:
    """Without a model the optimizer alone ends steps, and what an uncounted step cost is a sample's mean."""
    weight = nn.Parameter(torch.randn(WIDE, OUT))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    records: list[StepRecord] = []
    with mfu.monitor(None, name="bare", peaks=PEAKS, on_step=records.append):
        for _ in range(4):
            optimizer.zero_grad()
            (torch.randn(BATCH, WIDE) @ weight).sum().backward()
            optimizer.step()
    assert [r.model_flops for r in records] == [TRAIN] * 4
    assert records[3].count_source == "sampled"


def test_the_users_exception_passes(model: nn.Module, clock: testing.FakeClock) -> None:
    """It comes out unchanged; its step says what ended it and enters no sum."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    run = mfu.monitor(model, peaks=PEAKS, on_step=records.append)

    def train() -> None:
        with run:
            with run.step():
                train_once(model, optimizer)
            with run.step():
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        train()
    assert [r.error_type for r in records] == [None, "ZeroDivisionError"]
    assert run.summary().timed_steps == 0


def test_an_exception_inside_forward_leaves_no_mode(model: nn.Module, clock: testing.FakeClock) -> None:
    """A forward pass that fails while it is counted leaves no dispatch mode and no hook behind."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), mfu.monitor(model, peaks=PEAKS):
        model(torch.randn(BATCH, WIDE + 1))
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_an_empty_loader_is_said(model: nn.Module, clock: testing.FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """No batch: the loop goes on, a warning names the remedy, and MFU is unknown, not zero."""
    with caplog.at_level(logging.WARNING), mfu.monitor(model, peaks=PEAKS) as run:
        assert list(run.batches([])) == []
    assert "the loader gave no batch" in caplog.text
    assert run.summary().mfu is None
    assert "loader empty" in str(run.summary())


def test_without_a_peak_mfu_is_unknown(
    model: nn.Module, clock: testing.FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration forbidden and none cached: FLOPs are counted, MFU is None, and the summary says how to mend it."""
    monkeypatch.setenv("MFU_CALIBRATE", "off")
    optimizer = make_optimizer(model)
    records: list[StepRecord] = []
    with mfu.monitor(model, on_step=records.append) as run:
        for _ in range(4):
            with run.step():
                train_once(model, optimizer)
    assert records[3].model_flops == TRAIN
    assert records[3].mfu is None
    assert run.summary().mfu is None
    assert "mfu calibrate" in str(run.summary())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": nn.ReLU()}, "ReLU.*no parameters.*pass the module that holds the weights"),
        ({"model": "llama"}, "str.*must be a torch.nn.Module"),
        ({"start_step": -1}, "start_step=-1: must be a whole number"),
        ({"peaks": 1e12}, "peaks=1000000000000.0: must be a Peaks"),
        ({"optimizer": 3}, "optimizer=int: must be a torch.optim.Optimizer"),
        ({"on_step": 3}, "on_step=3: must be a function"),
        ({"name": ""}, "name='': must be a name"),
        ({"expected": 40.0}, "expected=40.0.*0.4 means 40"),
        ({"convention": "half"}, "convention='half'.*exact or full"),
        ({"spans": "some"}, "spans='some': must be one of"),
    ],
)
def test_bad_arguments_raise_before_start(arguments: dict[str, object], words: str) -> None:
    """The error names the value, the rule and the remedy."""
    with pytest.raises(ConfigurationError, match=words):
        mfu.monitor(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": ["cpu", "cpu"]}, "names a device twice"),
        ({"devices": "cuda:9"}, "cuda:9"),
        ({"devices": "quantum"}, "quantum.*torch knows no such device"),
        ({"devices": ()}, "at least one device"),
    ],
)
def test_bad_arguments_raise_on_entry(model: nn.Module, arguments: dict[str, object], words: str) -> None:
    """What needs the device to be looked at is refused on entry, before any hook is set."""
    with pytest.raises(ConfigurationError, match=words):
        mfu.monitor(model, peaks=PEAKS, **arguments).__enter__()  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_phase_is_refused(model: nn.Module, clock: testing.FakeClock) -> None:
    """A misspelt phase is refused with the list of those there are."""
    with mfu.monitor(model, peaks=PEAKS) as run, pytest.raises(ConfigurationError, match=r"phase='trian'.*train, eval"):
        run.step(phase="trian")  # type: ignore[arg-type]  # wrong on purpose


def test_a_cell_run_again_closes_its_monitor(
    model: nn.Module, clock: testing.FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A monitor that a notebook left open ends when the next one of the same model begins."""
    left_open = mfu.monitor(model, peaks=PEAKS).__enter__()
    with caplog.at_level(logging.WARNING), mfu.monitor(model, peaks=PEAKS) as run:
        assert len(model._forward_pre_hooks) == 1
        with run.step():
            model(torch.randn(BATCH, WIDE))
    assert "left open" in caplog.text
    assert left_open.summary().steps == 0
    assert run.summary().steps == 1


def test_nested_monitors_of_different_models(clock: testing.FakeClock) -> None:
    """Each sees its own model's steps."""
    outer_model, inner_model = nn.Linear(WIDE, OUT, bias=False), nn.Linear(WIDE, OUT, bias=False)
    with mfu.monitor(outer_model, peaks=PEAKS) as outer, mfu.monitor(inner_model, peaks=PEAKS) as inner:
        for _ in range(3):
            train_once(outer_model, make_optimizer(outer_model))
        with inner.step():
            inner_model(torch.randn(BATCH, WIDE))
    assert inner.summary().steps == 1
    assert outer.summary().steps == 3


def test_disabled_means_nothing_happens(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_ENABLED=0: the loop runs, no hook is set, and a summary says why there is none."""
    monkeypatch.setenv("MFU_ENABLED", "0")
    with mfu.monitor(model) as run:
        for _ in run.batches([1, 2]):
            with run.step():
                model(torch.randn(BATCH, WIDE))
        assert not model._forward_pre_hooks
    assert run.summary().mfu is None
    assert "MFU_ENABLED=0" in str(run.summary())


def test_as_a_decorator(model: nn.Module, clock: testing.FakeClock) -> None:
    """A decorated function trains under a monitor and returns what it returned."""
    watched = mfu.monitor(model, peaks=PEAKS)

    @watched
    def train(steps: int) -> str:
        for _ in range(steps):
            train_once(model, make_optimizer(model))
        return "done"

    assert train(3) == "done"
    assert watched.summary().steps == 3
    assert train(2) == "done"
    assert watched.summary().steps == 2


def test_a_failing_callback_is_logged(
    model: nn.Module, clock: testing.FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What `on_step` raises does not stop the loop."""
    monkeypatch.setenv("MFU_GUARD", "log")

    def fail(_record: StepRecord) -> None:
        raise ValueError("the callback's")

    with caplog.at_level(logging.WARNING), mfu.monitor(model, peaks=PEAKS, on_step=fail) as run:
        for _ in range(4):
            with run.step():
                model(torch.randn(BATCH, WIDE))
    assert "on_step" in caplog.text
    assert run.summary().steps == 4


def test_the_users_random_numbers_are_untouched(model: nn.Module, tmp_path: object) -> None:
    """A calibration on entry and counted steps leave torch's stream where it would have been."""

    def draw(*, monitored: bool) -> torch.Tensor:
        torch.manual_seed(7)
        state = model.state_dict()
        copy = nn.Linear(WIDE, OUT, bias=False)
        copy.load_state_dict(state)
        torch.manual_seed(7)
        optimizer = make_optimizer(copy)
        if not monitored:
            for _ in range(3):
                train_once(copy, optimizer)
        else:
            with mfu.monitor(copy):
                for _ in range(3):
                    train_once(copy, optimizer)
        return torch.cat((torch.randn(8), copy.weight.detach().flatten()))

    assert torch.equal(draw(monitored=False), draw(monitored=True))


def test_mfu_over_one_is_an_alarm(model: nn.Module, clock: testing.FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A ratio above 1 means that the peak or the count is wrong; it is said, not clipped."""
    slow = Peaks("cpu", {}, {"float32": Rate(1.0, 1.0, 1.0, "user", 0.0)}, None, None, {})
    with caplog.at_level(logging.WARNING), mfu.monitor(model, peaks=slow) as run:
        for _ in range(4):
            with run.step():
                model(torch.randn(BATCH, WIDE))
                clock.advance(1.0)
    assert run.summary().mfu == FORWARD
    assert "above 1" in caplog.text


def test_cross_entropy_loop_has_full_coverage(clock: testing.FakeClock) -> None:
    """An ordinary classifier with normalisation, activation, dropout and cross entropy leaves nothing uncounted."""
    model = nn.Sequential(nn.Linear(WIDE, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    with mfu.monitor(model, peaks=PEAKS) as run:
        for _ in range(4):
            with run.step():
                loss = F.cross_entropy(model(torch.randn(BATCH, WIDE)), torch.zeros(BATCH, dtype=torch.long))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                clock.advance(1.0)
    assert run.summary().uncounted == ()
    assert run.summary().coverage == 1.0


def test_a_step_for_each_micro_batch(model: nn.Module, clock: testing.FakeClock) -> None:
    """Marked around every micro-batch, the step with the optimizer's turn costs what the others do, and is known."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(16):
            with run.step():
                model(torch.randn(BATCH, WIDE)).sum().backward()
                if index % 4 == 3:
                    optimizer.step()
                    optimizer.zero_grad()
    assert [r.model_flops for r in records] == [TRAIN] * 16
    assert run.summary().unknown_steps == 0


def test_known_calls_in_a_new_number_are_predicted(model: nn.Module, clock: testing.FakeClock) -> None:
    """After one gradient each, two are a sum that no count has checked; five are counted and agree; three follow."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for number in (1, 1, 1, 1, 1, 2, 5, 3):
            for _ in range(number):
                model(torch.randn(BATCH, WIDE)).sum().backward()
            optimizer.step()
    assert [r.model_flops for r in records[5:]] == [None, 5 * TRAIN, 3 * TRAIN]
    assert [r.count_source for r in records[5:]] == [None, "measured", "predicted"]


def test_unfreezing_is_another_kind_of_step(clock: testing.FakeClock) -> None:
    """A layer that begins to want a gradient in mid-run changes the count at once, in both directions."""
    model = nn.Sequential(nn.Linear(WIDE, WIDE, bias=False), nn.Linear(WIDE, OUT, bias=False))
    model[0].weight.requires_grad = False
    square, wide = 2 * BATCH * WIDE * WIDE, FORWARD
    frozen, thawed = square + 2 * wide, 2 * square + 3 * wide
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(20):
            model[0].weight.requires_grad = 10 <= index < 15
            with run.step():
                train_once(model, optimizer)
    assert [r.model_flops for r in records] == [frozen] * 10 + [thawed] * 5 + [frozen] * 5


def test_what_runs_after_the_optimizer_is_not_training(model: nn.Module, clock: testing.FakeClock) -> None:
    """In an unmarked loop, averaging or evaluating something else between steps is in no step's FLOPs."""
    other = nn.Linear(WIDE, 1000)
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for _ in range(5):
            train_once(model, optimizer)
            other(torch.randn(BATCH, WIDE))
    assert [r.model_flops for r in records] == [TRAIN] * 5


def test_many_shapes_are_mostly_timed(model: nn.Module, clock: testing.FakeClock) -> None:
    """Where every step has a shape of its own, few are counted, and the summary says how many are unknown."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for batch in range(1, 201):
            with run.step():
                train_once(model, optimizer, batch)
    counted = sum(r.count_source == "measured" for r in records)
    # Those of the schedule (0, 1, 2, 4, …, 128), eight at once, and one in sixteen.
    assert counted <= 9 + 8 + 200 // 16
    summary = run.summary()
    assert summary.unknown_steps == 200 - counted
    assert summary.mfu is None


def test_unknown_steps_are_said(model: nn.Module, clock: testing.FakeClock) -> None:
    """An MFU over some of the steps says over how many not."""
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS) as run:
        for batch in [*[BATCH] * 20, *range(17, 40)]:
            with run.step():
                train_once(model, optimizer, batch)
                clock.advance(1.0)
    summary = run.summary()
    assert summary.mfu is not None
    assert summary.unknown_steps > 0
    assert f"{summary.unknown_steps} of {summary.timed_steps} timed steps are in no sum" in str(summary)


@pytest.mark.parametrize("style", ["wrapped", "in place"])
def test_compiled_after_the_monitor_began(style: str, clock: testing.FakeClock) -> None:
    """Our hooks cause no graph break under fullgraph; steps are those of the optimizer, and counts say sampled."""
    model = nn.Sequential(nn.Linear(WIDE, OUT, bias=False), nn.ReLU())
    optimizer = make_optimizer(model)
    torch._dynamo.reset()
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        compiled = model
        if style == "wrapped":
            compiled = torch.compile(model, backend="eager", fullgraph=True)
        else:
            model.compile(backend="eager", fullgraph=True)
        for _ in range(5):
            train_once(compiled, optimizer)
    torch._dynamo.reset()
    # The first step was over before it showed itself; the others are counted from the optimizer's end on.
    assert [r.model_flops for r in records[1:]] == [TRAIN] * 4
    assert records[-1].count_source in ("measured", "sampled")
    assert any("no call of the model was seen" in note for note in run.summary().notes)


def test_a_container_that_is_never_called(clock: testing.FakeClock) -> None:
    """Where the parts are called and the whole is not, the optimizer's steps are the steps."""
    model = nn.ModuleDict({"net": nn.Linear(WIDE, OUT, bias=False)})
    optimizer = make_optimizer(model)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for _ in range(5):
            train_once(model["net"], optimizer)
    assert [r.model_flops for r in records[1:]] == [TRAIN] * 4


def test_a_monitored_model_can_be_copied_and_saved(model: nn.Module, clock: testing.FakeClock) -> None:
    """Exponential averages copy a model, checkpoints pickle it: our hooks are in neither."""
    import copy
    import io

    with mfu.monitor(model, peaks=PEAKS) as run:
        with run.step():
            twin = copy.deepcopy(model)
            twin(torch.randn(BATCH, WIDE))
            torch.save(model, io.BytesIO())
            torch.optim.swa_utils.AveragedModel(model)
        with run.step():
            twin(torch.randn(BATCH, WIDE))
    assert torch.equal(twin.weight, model.weight)


def test_calls_between_marked_steps_are_said(model: nn.Module, clock: testing.FakeClock) -> None:
    """Their time is in the next step and their FLOPs are in none, which a reader must know."""
    with mfu.monitor(model, peaks=PEAKS) as run:
        for _ in range(5):
            with run.step():
                model(torch.randn(BATCH, WIDE))
                clock.advance(1.0)
            model(torch.randn(BATCH, WIDE))
    assert any("between marked steps" in note for note in run.summary().notes)


@pytest.mark.parametrize("tokens", [-5, 2.5, "x", torch.tensor(3)])
def test_wrong_tokens_cost_the_tokens(
    tokens: object, model: nn.Module, clock: testing.FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An amount that is no whole number is left out with one warning; the loop and its FLOPs go on."""
    records: list[StepRecord] = []
    with caplog.at_level(logging.WARNING), mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(4):
            with run.step(tokens=tokens):  # type: ignore[arg-type]  # wrong on purpose
                model(torch.randn(BATCH, WIDE))
    assert [r.tokens for r in records] == [None] * 4
    assert caplog.text.count("whole number") == 1
    assert records[3].model_flops == FORWARD


def test_batches_are_as_long_as_the_loader(model: nn.Module, clock: testing.FakeClock) -> None:
    """A progress bar around `run.batches` keeps its total."""
    with mfu.monitor(model, peaks=PEAKS) as run:
        assert len(run.batches([1, 2, 3])) == 3
        assert list(run.batches([1, 2, 3])) == [1, 2, 3]


class PackedAttention(nn.Module):
    """Causal attention within sequences that are packed into one; the shapes of a call do not show their lengths."""

    def __init__(self, kind: str, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.lengths: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, width = x.shape
        q, k, v = self.qkv(x).view(tokens, 3, self.heads, -1).unbind(1)
        if self.kind == "split":
            parts = zip(*(t.transpose(0, 1)[None].split(self.lengths, dim=2) for t in (q, k, v)), strict=True)
            each = [F.scaled_dot_product_attention(*part, is_causal=True) for part in parts]
            mixed = torch.cat(each, dim=2)[0].transpose(0, 1)
        else:
            of = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
            back = torch.arange(tokens)[:, None] - torch.arange(tokens)
            mask = (of[:, None] == of) & (back >= 0)
            if self.kind == "window":
                mask &= back < 6
            heads = [t.transpose(0, 1)[None] for t in (q, k, v)]
            mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)[0].transpose(0, 1)
        return self.out(mixed.reshape(tokens, width))


def train_packed(kind: str, calls: int = 1, told: bool = True) -> tuple[list[StepRecord], list[int], str]:
    """Records of steps on random packs, what counting each gives, and the summary."""
    model = PackedAttention(kind)
    draw = random.Random(1)
    records: list[StepRecord] = []
    counted: list[int] = []

    def step(packs: list[list[int]]) -> None:
        for lengths in packs:
            model.lengths = lengths
            model(torch.randn(40, 8)).sum().backward()

    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(40):
            packs = []
            for _ in range(calls):
                cuts = sorted(draw.sample(range(1, 40), draw.randint(2, 9)))
                packs.append([b - a for a, b in zip([0, *cuts], [*cuts, 40], strict=True)])
            with run.step(seq_lens=[length for pack in packs for length in pack] if told else None):
                step(packs)
            counted.append(mfu.count(step, packs).model_flops)
    return records, counted, str(run.summary())


@pytest.mark.parametrize(("kind", "calls"), [("split", 1), ("mask", 1), ("mask", 3)])
def test_packed_lengths_are_predicted_exactly(kind: str, calls: int, clock: testing.FakeClock) -> None:
    """Told the lengths of each pack, most steps are predicted from Σs and Σs² of others, to the last FLOP."""
    records, counted, _ = train_packed(kind, calls)
    predicted = [index for index, record in enumerate(records) if record.count_source == "predicted"]
    assert len(predicted) >= 15
    exact = {"predicted", "measured", "cached"}
    assert [r.model_flops for r in records if r.count_source in exact] == [
        flops for flops, r in zip(counted, records, strict=True) if r.count_source in exact
    ]
    assert len(set(counted)) > 20


def test_a_window_over_packed_lengths_is_sampled(clock: testing.FakeClock) -> None:
    """Σs² does not tell what a sliding window costs: nothing is predicted, and the mean over packs says what it is."""
    records, counted, summary = train_packed("window")
    assert {r.count_source for r in records} == {"measured", "sampled"}
    for record, flops in zip(records, counted, strict=True):
        if record.count_source == "measured":
            assert record.model_flops == flops
        else:
            assert min(counted) <= (record.model_flops or 0) <= max(counted)
    assert "standard deviation" in summary


def test_packed_lengths_untold_are_a_sample(clock: testing.FakeClock) -> None:
    """Without the lengths all packs look alike: later steps have the mean of those counted, and its spread is said."""
    records, counted, summary = train_packed("mask", told=False)
    shown = [flops for index, flops in enumerate(counted) if index in (0, 1, 2, 4, 8, 16, 32)]
    assert records[-1].count_source == "sampled"
    # The means of forward and backward are rounded down each.
    assert records[-1].model_flops in (sum(shown) // 7, sum(shown) // 7 - 1)
    assert f"7 counts of {min(shown):,} to {max(shown):,} model FLOPs, mean {sum(shown) // 7:,}" in summary


def test_lengths_on_a_device_are_left_out(
    model: nn.Module, clock: testing.FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """To read them would wait for the device: one warning with the remedy, and the loop goes on."""
    records: list[StepRecord] = []
    with caplog.at_level(logging.WARNING), mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(4):
            with run.step(seq_lens=torch.empty(2, dtype=torch.int64, device="meta")):
                model(torch.randn(BATCH, WIDE))
    assert caplog.text.count("a tensor on meta: reading it would wait for the device; give the lengths as a list") == 1
    assert records[3].model_flops == FORWARD


def test_counts_that_a_signature_does_not_determine(model: nn.Module, clock: testing.FakeClock) -> None:
    """Every other counted step calls one more layer: the mean is reported, and how far the counts lie apart."""
    extra = nn.Linear(OUT, OUT, bias=False)

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.extra, self.often = model, extra, True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            return self.extra(y) if self.often else y

    routed = Sometimes()
    records: list[StepRecord] = []
    with mfu.monitor(routed, peaks=PEAKS, on_step=records.append) as run, torch.no_grad():
        for index in range(6):
            routed.often = index in (1, 4)
            with run.step():
                routed(torch.randn(BATCH, WIDE))
        more = FORWARD + 2 * BATCH * OUT * OUT
        # 0, 1, 2 and 4 were counted: two of either kind, 2·B·O² apart, so they deviate by that over √3.
        assert records[5].model_flops == (FORWARD + more) // 2
        assert records[5].count_source == "sampled"
        deviation = isqrt((2 * BATCH * OUT * OUT) ** 2 // 3)
        told = f"4 counts of {FORWARD:,} to {more:,} model FLOPs, mean {(FORWARD + more) // 2:,}"
        assert f"{told}, standard deviation {deviation:,}" in str(run.summary())
    assert str(run.summary()).count(told) == 1


def test_a_prediction_is_held_against_the_next_count(clock: testing.FakeClock) -> None:
    """A model that changes its mind after its lengths were learned: the next counted step says so, and trust ends."""

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.times = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.times):
                x = x @ self.weight
            return x

    model = Fickle()
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run, torch.no_grad():
        for index, rows in enumerate([1, 2, 7, 15, 24, 29, 30, *range(8, 15), *range(16, 24), 25, 26]):
            model.times = 1 if index < 16 else 2
            with run.step():
                model(torch.ones(rows, 4))
    assert {r.count_source for r in records[7:16]} == {"measured", "predicted"}
    assert [r.model_flops for r in records[:16]] == [
        32 * rows for rows in (1, 2, 7, 15, 24, 29, 30, *range(8, 15), 16, 17)
    ]
    # Step 16 is counted by the schedule: 18 rows, twice as dear as predicted.
    assert records[16].model_flops == 2 * 32 * 18
    assert "predicted" not in [r.count_source for r in records[17:]]
    assert "576 model FLOPs had been predicted counted 1,152" in str(run.summary())


def test_work_outside_of_the_calls_ends_sums_of_calls(clock: testing.FakeClock, model: nn.Module) -> None:
    """A teacher that runs once in a step is no part of a call: five calls are not five times one call's step."""
    teacher = nn.Linear(WIDE, OUT, bias=False)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run, torch.no_grad():
        for number in (1, 1, 1, 1, 1, 2, 5, 3, 1):
            with run.step():
                teacher(torch.randn(BATCH, WIDE))
                for _ in range(number):
                    model(torch.randn(BATCH, WIDE))
    assert [r.model_flops for r in records[:5]] == [2 * FORWARD] * 5
    # Five were counted, to see whether they are five times one; they are not.
    assert [r.model_flops for r in records[5:]] == [None, 6 * FORWARD, None, 2 * FORWARD]


def test_new_shapes_behind_a_teacher_are_counted_whole(clock: testing.FakeClock, model: nn.Module) -> None:
    """Where something runs before the model's call, a step that turns out to have new shapes is not half counted."""
    teacher = nn.Linear(WIDE, OUT, bias=False)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run, torch.no_grad():
        for rows in [16] * 5 + [4, 4, 4]:
            with run.step():
                teacher(torch.randn(rows, WIDE))
                model(torch.randn(rows, WIDE))
    part = 2 * 4 * WIDE * OUT
    assert [r.model_flops for r in records] == [2 * FORWARD] * 5 + [None, 2 * part, 2 * part]
    assert [r.count_source for r in records[5:]] == [None, "measured", "cached"]


def test_steps_of_two_kinds_of_calls_are_counted_when_it_is_their_turn(
    model: nn.Module, clock: testing.FakeClock
) -> None:
    """A step with a long and a short batch is known by both; it is not counted again because neither came alone."""
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run, torch.no_grad():
        for _ in range(8):
            with run.step():
                model(torch.randn(BATCH, WIDE))
                model(torch.randn(2 * BATCH, WIDE))
    assert [r.model_flops for r in records] == [3 * FORWARD] * 8
    assert [index for index, r in enumerate(records) if r.count_source == "measured"] == [0, 1, 2, 4]


class Folded(nn.Linear):
    """Runs its input through itself `folds` times more, by calling itself as a tree of modules does."""

    def forward(self, x: torch.Tensor, folds: int = 0) -> torch.Tensor:
        y = super().forward(x)
        return self(y, folds - 1) if folds else y


def test_a_model_that_calls_itself(clock: testing.FakeClock) -> None:
    """Its calls of itself are part of what a step shows: 1, 2 or 3 products cost as much, counted or looked up."""
    records: list[StepRecord] = []
    model = Folded(WIDE, WIDE, bias=False)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(40):
            with run.step(), torch.no_grad():
                model(torch.randn(BATCH, WIDE), index % 3)
                clock.advance(0.1)
    once = 2 * BATCH * WIDE * WIDE
    assert [r.model_flops for r in records] == [once * (1 + index % 3) for index in range(40)]
    assert {r.count_source for r in records[16:32]} == {"measured", "cached"}


def test_an_unmarked_model_that_calls_itself(clock: testing.FakeClock) -> None:
    """No step ends or begins at a call that the model makes of itself."""
    records: list[StepRecord] = []
    model = Folded(WIDE, WIDE, bias=False)
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(BATCH, WIDE), 2).square().mean().backward()
            optimizer.step()
            clock.advance(0.1)
    # Three products forward; backward three for the weight and two for what lies between.
    assert [r.model_flops for r in records] == [8 * 2 * BATCH * WIDE * WIDE] * 6


def test_a_step_of_another_phase_within_a_step(model: nn.Module, clock: testing.FakeClock) -> None:
    """An evaluation in the middle of a training step: each has its own time, tokens and FLOPs, counted or looked up."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(10):
            with run.step(tokens=7):
                clock.advance(0.25)
                with run.step(tokens=5, phase="eval"):
                    with torch.no_grad():
                        model(torch.randn(BATCH, WIDE))
                    clock.advance(3.0)
                clock.advance(0.25)
                train_once(model, optimizer)
    assert [r.phase for r in records] == ["eval", "train"] * 10
    assert [r.index for r in records] == list(range(20))
    assert [r.duration_s for r in records] == [3.0, 0.5] * 10
    assert [r.tokens for r in records] == [5, 7] * 10
    # The outer steps with numbers 0, 2, 4, 8 and 16 have the mode, so the second evaluation is not known yet.
    assert [r.model_flops for r in records[3::2]] == [TRAIN] * 9
    known = [r.model_flops for r in records[::2]]
    assert set(known[known.index(FORWARD) :]) == {FORWARD}
    assert known.index(FORWARD) < 4
    assert run.summary().duration_s == sum(r.duration_s for r in records if r.count_source != "measured")


def test_a_step_within_a_step_of_its_phase_is_part_of_it(
    model: nn.Module, clock: testing.FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A mark too many makes no step, and says so."""
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run, run.step():
        with run.step():
            clock.advance(0.5)
        with run.step(phase="eval"), run.step(phase="eval"):
            clock.advance(0.125)
        clock.advance(0.5)
    assert [(r.phase, r.duration_s) for r in records] == [("eval", 0.125), ("train", 1.0)]
    assert "a train step inside a train step is part of the outer one" in caplog.text


def fails_after(seconds: float, clock: testing.FakeClock) -> None:
    clock.advance(seconds)
    raise RuntimeError("mine")


def test_an_error_within_an_inner_step(model: nn.Module, clock: testing.FakeClock) -> None:
    """The inner step has failed, the outer one too if nobody caught it; what comes after is as ever."""
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        with pytest.raises(RuntimeError, match="mine"), run.step(), run.step(phase="eval"):
            fails_after(0.5, clock)
        with run.step():
            clock.advance(0.25)
    assert [(r.phase, r.error_type, r.duration_s) for r in records] == [
        ("eval", "RuntimeError", 0.5),
        ("train", "RuntimeError", 0.0),
        ("train", None, 0.25),
    ]


def test_a_checkpoint_is_time_without_arithmetic(model: nn.Module, clock: testing.FakeClock) -> None:
    """A second of saving after four steps of a quarter of one halves the MFU, and is the host's gap."""
    records: list[StepRecord] = []
    optimizer = make_optimizer(model)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(16):
            with run.step():
                train_once(model, optimizer)
                clock.advance(0.25)
            if index % 4 == 3:
                with run.step(phase="checkpoint"):
                    clock.advance(1.0)
    saved = [r for r in records if r.phase == "checkpoint"]
    assert [(r.model_flops, r.mfu, r.duration_s, r.peak_dtype) for r in saved] == [(0, 0.0, 1.0, "float32")] * 4
    timed = [r for r in records if r.count_source != "measured" and not r.profiled]
    summary = run.summary()
    assert summary.mfu == sum(r.model_flops or 0 for r in timed) / sum(r.duration_s * 1e9 for r in timed)
    assert summary.waterfall["host_gap"] >= 4 / sum(r.duration_s for r in timed)
    assert summary.unknown_steps == 0


class Wrapping(torch.optim.Optimizer):
    """An optimizer around another, as Accelerate's is: it is one, and only the inner one's step is seen."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.optimizer.step()


def test_an_optimizer_around_another(model: nn.Module, clock: testing.FakeClock) -> None:
    """Given to the monitor, it stands for the one that it wraps."""
    records: list[StepRecord] = []
    inner = make_optimizer(model)
    wrapping = Wrapping(inner)
    with mfu.monitor(model, optimizer=wrapping, peaks=PEAKS, on_step=records.append):
        for _ in range(4):
            model(torch.randn(BATCH, WIDE)).square().mean().backward()
            wrapping.step()
            clock.advance(0.5)
    assert [r.model_flops for r in records] == [TRAIN] * 4


def test_a_closure_that_runs_several_times(model: nn.Module, clock: testing.FakeClock) -> None:
    """LBFGS evaluates its closure as often as it likes: all of that is the one step, in a loop that marks nothing."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, tolerance_change=0.0, tolerance_grad=0.0)
    x, ran = torch.randn(BATCH, WIDE), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        ran[-1] += 1
        clock.advance(0.5)
        return loss

    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append):
        for _ in range(4):
            ran.append(0)
            optimizer.step(closure)
    assert min(ran) > 1
    # What LBFGS multiplies itself, vectors of the weights' length, is no work of the model's.
    assert [record.model_flops for record in records] == [times * TRAIN for times in ran]
    assert [record.duration_s for record in records] == [times * 0.5 for times in ran]


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_a_step_that_the_scaler_skips(marked: bool, model: nn.Module, clock: testing.FakeClock) -> None:
    """Gradients that are not finite: the optimizer does not step. A marked step stands; else the next one holds it.

    Of that one it is known how long it was, and, since no step of two calls was counted, not what it cost.
    """
    optimizer, scaler = make_optimizer(model), torch.amp.GradScaler("cpu")
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for scale in (1.0, 1.0, 1.0, float("inf"), 1.0, 1.0):
            with run.step() if marked else nullcontext():
                optimizer.zero_grad()
                scaler.scale(scale * model(torch.randn(BATCH, WIDE)).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
                clock.advance(1.0)
    expected = [TRAIN] * 6 if marked else [TRAIN, TRAIN, TRAIN, None, TRAIN]
    assert [record.model_flops for record in records] == expected
    # Nothing marks when the first one began but its forward pass, nor when the last one ended but its optimizer.
    lasted = [1.0] * 6 if marked else [1.0, 1.0, 1.0, 2.0, 0.0]
    assert [record.duration_s for record in records] == lasted


def test_a_step_that_never_ends(model: nn.Module, clock: testing.FakeClock) -> None:
    """One that is entered and never left is no step when the run closes: nothing of it is guessed, no hook is left."""
    optimizer = make_optimizer(model)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(4):
            with run.step():
                train_once(model, optimizer)
                clock.advance(1.0)
        run.step().__enter__()
        train_once(model, optimizer)
        clock.advance(9.0)
        assert run.summary().steps == 4
    assert [record.duration_s for record in records] == [1.0] * 4
    assert run.summary().duration_s == 1.0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not model._forward_pre_hooks
