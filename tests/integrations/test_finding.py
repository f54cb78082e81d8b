"""Programs that say nothing of us: which model a `Finder` finds, and from which step on it is measured."""

import gc
import os
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.integrations.finding import Finder
from mfu_sdk.records import Peaks, StepRecord
from mfu_sdk.run.monitor import Monitor

BATCH, WIDE, OUT = 16, 64, 32
FORWARD = 2 * BATCH * WIDE * OUT
TRAIN = 2 * FORWARD
"""The input needs no gradient, so the backward pass is the product for the weight alone."""


class Watch:
    """A finder whose monitors have a given peak, and what they recorded."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks
        self.models: list[nn.Module | None] = []
        self.records: list[StepRecord] = []
        self.finder = Finder(self._begin)

    def _begin(self, model: nn.Module | None, name: str | None) -> Monitor:
        self.models.append(model)
        return mfu.monitor(model, name=name, peaks=self._peaks, on_step=self.records.append)

    @property
    def flops(self) -> list[int | None]:
        return [record.model_flops for record in self.records]


@pytest.fixture
def watch(peaks: Peaks) -> Iterator[Watch]:
    found = Watch(peaks)
    found.finder.start()
    try:
        yield found
    finally:
        found.finder.stop()


class Tanh(nn.Module):
    """A layer of the user's own: torch compiles none of its own modules by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDE, OUT, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).tanh()


def linear() -> nn.Module:
    return nn.Linear(WIDE, OUT, bias=False)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(BATCH, WIDE)).square().mean().backward()
        optimizer.step()


def test_steps_from_the_second_on(watch: Watch) -> None:
    """Of five steps the last four are measured, each with the FLOPs that a hand works out."""
    model = linear()
    train(model, sgd(model), 5)
    [summary] = watch.finder.stop()
    assert watch.models == [model]
    assert watch.flops == [TRAIN] * 4
    assert summary.steps == 4
    assert not model._forward_pre_hooks


def test_one_step_is_not_measured(watch: Watch) -> None:
    """A program that ends before its second step has no run, and leaves no hook."""
    model = linear()
    train(model, sgd(model), 1)
    assert watch.finder.stop() == []
    assert watch.finder.optimizer_steps_seen == 1
    assert not model._forward_pre_hooks


def test_the_outermost_that_is_called(watch: Watch) -> None:
    """The model is what the loop calls: not the container around it, not the layers within."""
    holder = nn.ModuleDict({"net": nn.Sequential(linear(), nn.ReLU())})
    train(holder["net"], sgd(holder), 4)
    assert watch.models == [holder["net"]]
    watch.finder.stop()
    assert not any(m._forward_pre_hooks for m in holder.modules())


def test_a_wrapper_is_the_model(watch: Watch) -> None:
    """What wraps a model (here DataParallel, as DDP and FSDP do) is what is called, so it is watched."""
    wrapped = nn.DataParallel(linear())
    train(wrapped, sgd(wrapped), 4)
    watch.finder.stop()
    assert watch.models == [wrapped]
    assert watch.flops == [TRAIN] * 3


def test_frozen_and_untrained_modules_are_no_models(watch: Watch) -> None:
    """A teacher that is called first is not taken for the model, which is what the optimizer trains."""
    teacher, student = linear(), linear()
    optimizer = sgd(student)
    for _ in range(4):
        x = torch.randn(BATCH, WIDE)
        with torch.no_grad():
            target = teacher(x)
        optimizer.zero_grad()
        (student(x) - target).square().mean().backward()
        optimizer.step()
    assert watch.models == [student]


def test_an_evaluation_in_between_finds_nothing(watch: Watch) -> None:
    """A part of the model that is called without gradients is not taken for the model."""
    model = nn.Sequential(linear(), nn.Linear(OUT, 8, bias=False))
    optimizer = sgd(model)
    train(model, optimizer, 1)
    with torch.no_grad():
        model[0](torch.randn(BATCH, WIDE))
    train(model, optimizer, 3)
    assert watch.models == [model]


def test_gradient_accumulation(watch: Watch) -> None:
    """Three forward and backward passes before one optimizer step are one step, and the first one goes unmeasured."""
    model = linear()
    optimizer = sgd(model)
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(3):
            model(torch.randn(BATCH, WIDE)).sum().backward()
        optimizer.step()
    watch.finder.stop()
    assert watch.flops == [3 * TRAIN] * 2


def test_a_closure_shows_the_first_step(watch: Watch) -> None:
    """An optimizer that calls the model itself is seen from its first step on."""
    model = linear()
    optimizer = sgd(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(BATCH, WIDE)).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    watch.finder.stop()
    assert watch.flops == [TRAIN] * 4


def test_compiled_models_are_compiled_once(watch: Watch) -> None:
    """What `torch.compile` returned is watched, and watching it compiles nothing again."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    model = torch.compile(nn.Sequential(linear(), nn.Tanh()), backend="aot_eager")
    train(model, sgd(model), 5)  # type: ignore[arg-type]  # a module, which its type does not say
    watch.finder.stop()
    assert watch.models == [model]
    assert watch.flops == [TRAIN] * 4
    assert dynamo.utils.counters["frames"]["total"] == 1


def test_compiled_in_place_steps_are_the_optimizers(watch: Watch) -> None:
    """A model that was compiled in place shows no call: from the third step on it is sampled, and not recompiled."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    model = Tanh()
    model.compile(backend="aot_eager")
    train(model, sgd(model), 6)
    [summary] = watch.finder.stop()
    assert watch.models == [None]
    assert summary.name == "Tanh"
    assert watch.flops == [TRAIN] * 4
    assert dynamo.utils.counters["frames"]["total"] == 1


def test_an_optimizer_with_parameters_of_its_own(watch: Watch) -> None:
    """One that steps copies of the weights (mixed precision, ZeRO) still leads to the model that wants gradients."""
    model = linear()
    copies = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(copies, lr=0.1)
    for _ in range(4):
        model.zero_grad()
        model(torch.randn(BATCH, WIDE)).sum().backward()
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            copy.grad = parameter.grad
        optimizer.step()
        with torch.no_grad():
            for copy, parameter in zip(copies, model.parameters(), strict=True):
                parameter.copy_(copy)
    watch.finder.stop()
    assert model in watch.models
    assert watch.flops == [TRAIN] * 3


def test_no_module_at_all(watch: Watch) -> None:
    """Bare tensors that are trained are measured by the optimizer's steps."""
    gc.collect()
    weight = nn.Parameter(torch.randn(WIDE, OUT))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        (torch.randn(BATCH, WIDE) @ weight).sum().backward()
        optimizer.step()
    watch.finder.stop()
    assert watch.models == [None]
    assert watch.flops == [TRAIN] * 4


def test_two_optimizers_are_one_training(watch: Watch) -> None:
    """A second optimizer, as a GAN has it, begins no second run."""
    one, two = linear(), linear()
    first, second = sgd(one), sgd(two)
    for _ in range(4):
        train(one, first, 1)
        train(two, second, 1)
    assert [summary.steps for summary in watch.finder.stop()] == [3]
    assert watch.models == [one]


def test_the_next_training_is_the_next_run(watch: Watch) -> None:
    """A sweep: each model has a run of its own, and none is kept alive once the program lets it go."""
    gone: list[weakref.ref[nn.Module]] = []
    for _ in range(2):
        model = linear()
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        train(model, optimizer, 4)
        scheduler.step()
        gone.append(weakref.ref(model))
        watch.models.clear()
        del model, optimizer, scheduler
        gc.collect()
        assert gone[-1]() is None
    assert [summary.steps for summary in watch.finder.stop()] == [3, 3]


def test_a_new_optimizer_of_the_same_model(watch: Watch) -> None:
    """A program that makes a new optimizer for every epoch has one run."""
    model = linear()
    optimizer = sgd(model)
    for _ in range(3):
        train(model, optimizer, 3)
        optimizer = sgd(model)
    assert [summary.steps for summary in watch.finder.stop()] == [8]


def test_it_makes_way_for_the_programs_own_monitor(watch: Watch, peaks: Peaks) -> None:
    """A program that opens a monitor is left alone from there on: nothing is counted twice."""
    model = linear()
    optimizer = sgd(model)
    train(model, optimizer, 3)
    with mfu.monitor(model, peaks=peaks) as run:
        train(model, optimizer, 3)
    assert watch.finder.stepped_aside
    assert run.summary().steps == 3
    assert [summary.steps for summary in watch.finder.stop()] == [2]


def test_a_fork_measures_nothing(watch: Watch) -> None:
    """A child process that was forked finds the hooks there, and they do nothing."""
    model = linear()
    optimizer = sgd(model)
    train(model, optimizer, 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # No backward: torch allows none in a fork of a process that has done one.
            for _ in range(3):
                model(torch.ones(1, WIDE))
                optimizer.step()
            code = 0 if not watch.models and watch.finder.stop() == [] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    train(model, optimizer, 1)
    assert watch.models == [model]


def test_the_users_error_ends_the_run(watch: Watch) -> None:
    """The step that an error ended says so and enters no sum."""
    model = linear()
    optimizer = sgd(model)
    train(model, optimizer, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        model(torch.randn(BATCH, WIDE + 1))
    watch.finder.stop(caught.type, caught.value)
    assert [record.error_type for record in watch.records] == [None, None, "RuntimeError"]
