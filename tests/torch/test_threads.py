"""Work in other threads: what a thread hands over counts, what belongs to others does not, and nothing stays behind."""

import asyncio
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import mfu_sdk as mfu
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.records import Count, Peaks, Rate, StepRecord

ROWS, WIDE = 4, 8
PRODUCT = 2 * ROWS * WIDE * WIDE
"""FLOPs of the product of a (4, 8) by an (8, 8)."""
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})
SOON_S = 600
"""More than anything here takes: a first compilation on a busy machine compiles torch's headers too, for minutes."""

Work = Callable[[], Any]


def x() -> torch.Tensor:
    return torch.randn(ROWS, WIDE)


def linear() -> nn.Linear:
    return nn.Linear(WIDE, WIDE, bias=False)


def train(model: nn.Module) -> None:
    """One product forward and, as the rows want no gradient, one backward."""
    model(x()).sum().backward()


def stages(count: Count) -> tuple[int, int, int]:
    """Forward, backward and recomputation, in products; what is priced is all, and splits add up."""
    assert (count.uncounted, count.coverage) == ((), 1.0)
    for split in (count.by_dtype, count.by_module, count.by_op):
        assert sum(split.values()) == count.model_flops
    found = count.forward_flops, count.backward_flops, count.recompute_flops
    assert not any(flops % PRODUCT for flops in found)
    return tuple(flops // PRODUCT for flops in found)  # type: ignore[return-value]


def in_thread(work: Work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=SOON_S)
    assert not thread.is_alive()


class Loop:
    """A thread that ran before, and takes its work from a queue of the program's own."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the work came from
                self._done.put(error)
            else:
                self._done.put(None)

    def run(self, work: Work) -> None:
        self._work.put(work)
        if (error := self._done.get(timeout=SOON_S)) is not None:
            raise error

    def end(self) -> None:
        self._work.put(None)
        self._thread.join(timeout=SOON_S)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.end()


# --- handed over -----------------------------------------------------------------------------------------------------


class Own(threading.Thread):
    """A thread whose work is its `run`."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def run(self) -> None:
        self._work()


def by_own_thread(work: Work) -> None:
    thread = Own(work)
    thread.start()
    thread.join(timeout=SOON_S)
    assert "run" not in vars(thread)


def by_new_pool(work: Work) -> None:
    with ThreadPoolExecutor(2) as pool:
        pool.submit(work).result(timeout=SOON_S)


def by_asyncio(work: Work) -> None:
    async def main() -> None:
        await asyncio.gather(asyncio.to_thread(work))

    asyncio.run(main())


def by_timer(work: Work) -> None:
    timer = threading.Timer(0.0, work)
    timer.start()
    timer.join(timeout=SOON_S)


def by_thread_in_thread(work: Work) -> None:
    in_thread(lambda: in_thread(work))


HAND_OVERS = (in_thread, by_own_thread, by_new_pool, by_asyncio, by_timer, by_thread_in_thread)


@pytest.mark.parametrize("hand_over", HAND_OVERS)
def test_what_is_handed_over(hand_over: Callable[[Work], None]) -> None:
    """A step of one layer whose rows want a gradient: one product forward, two backward, of its module."""
    model = linear()
    count = mfu.count(lambda: hand_over(lambda: model(x().requires_grad_()).sum().backward()))
    assert stages(count) == (1, 2, 0)
    assert count.by_module == {"Linear": 3 * PRODUCT}


@pytest.mark.parametrize("pool_of", [ThreadPoolExecutor, ThreadPool])
def test_pools_that_ran_before(pool_of: type[ThreadPoolExecutor] | type[ThreadPool]) -> None:
    """Four calls that an old pool is handed while counting; what others hand it then and later is theirs."""
    model = linear()
    pool = pool_of(2)
    list(pool.map(str, range(2)))

    def run() -> None:
        list(pool.map(lambda _: train(model), range(4)))

    try:
        assert stages(mfu.count(run)) == (4, 4, 0)
        mode = CountingMode()
        with mode:
            pass
        run()
        assert mode.result().model_flops == 0
    finally:
        pool.terminate() if isinstance(pool, ThreadPool) else pool.shutdown()


def test_a_pool_shared_with_a_thread_that_does_not_count(loop: Loop) -> None:
    """The pool's thread is born of a counted call, and runs another thread's call meanwhile: that is not counted."""
    mine, theirs = linear(), linear()
    with ThreadPoolExecutor(1) as pool:

        def run() -> None:
            pool.submit(train, mine).result(timeout=SOON_S)
            loop.run(lambda: pool.submit(train, theirs).result(timeout=SOON_S))

        assert stages(mfu.count(run)) == (1, 1, 0)


@pytest.mark.parametrize("hand_over", HAND_OVERS)
def test_backward_in_another_thread(hand_over: Callable[[Work], None]) -> None:
    """The forward here and the backward there, or the other way round: both are the module's, once."""
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    losses: list[torch.Tensor] = []

    def forward() -> None:
        losses.append(model(x()).sum())

    def there() -> None:
        forward()
        hand_over(losses.pop().backward)

    def here() -> None:
        hand_over(forward)
        losses.pop().backward()

    for run in (there, here):
        count = mfu.count(run)
        # The first layer's rows want no gradient.
        assert stages(count) == (2, 3, 0)
        assert set(count.by_module) == {"Sequential.0", "Sequential.2"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_in_a_thread(reentrant: bool) -> None:
    """Of two products the first runs again (both, reentrant), in a thread as anywhere."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def run() -> None:
        rows = x().requires_grad_()
        saved = checkpoint(lambda y: (y @ w).sin() @ w, rows, use_reentrant=reentrant)
        saved.sum().backward()

    assert stages(mfu.count(lambda: in_thread(run))) == (2, 4, 2 if reentrant else 1)


class Replicas(nn.Module):
    """As `nn.DataParallel`: in each forward copies of the model, each in a thread of its own with its share of rows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        shares = rows.chunk(2)
        found: dict[int, torch.Tensor] = {}

        def run(i: int, replica: nn.Module) -> None:
            found[i] = replica(shares[i])

        threads = []
        for i in range(len(shares)):
            replica = self.module._replicate_for_data_parallel()
            # Its weights are no leaves, as those of a replica on another device.
            for name, parameter in self.module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, parameter.view_as(parameter))
            threads.append(threading.Thread(target=run, args=(i, replica)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=SOON_S)
        return torch.cat([found[i] for i in range(len(shares))])


@pytest.mark.parametrize("of", ["whole", "inner"])
def test_replicas_under_a_monitor(of: str) -> None:
    """Half of the rows in each of two threads: together a product forward and one backward, counted or looked up."""
    inner = linear()
    model = Replicas(inner)
    assert stages(mfu.count(model, x())) == (1, 0, 0)
    records: list[StepRecord] = []
    with mfu.monitor(model if of == "whole" else inner, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(7):
            with run.step():
                train(model)
    assert [r.model_flops for r in records] == [2 * PRODUCT] * 7
    assert {r.count_source for r in records} == {"measured", "cached"}


def test_a_priced_function_in_a_thread() -> None:
    """Its backward runs in another thread than its forward, at its own price all the same."""

    class Priced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
            return rows + 1

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * 2

    mfu.register_flops(Priced, lambda rows, out: 7 * PRODUCT, backward=lambda rows, out: 9 * PRODUCT)
    outputs: list[torch.Tensor] = []
    rows = x().requires_grad_()

    def run() -> None:
        in_thread(lambda: outputs.append(Priced.apply(rows)))  # type: ignore[no-untyped-call]
        outputs[0].sum().backward()

    count = mfu.count(run)
    assert (count.forward_flops, count.backward_flops) == (7 * PRODUCT, 9 * PRODUCT)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_code_in_a_thread() -> None:
    """First called in a counted thread, it is compiled once, counts by its graph, and stays compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    compiled = torch.compile(model)
    rows = x()
    counts = [mfu.count(lambda: in_thread(lambda: compiled(rows).sum().backward())) for _ in range(2)]
    compiled(rows)
    assert [stages(count) for count in counts] == [(2, 3, 0)] * 2
    assert dict(torch._dynamo.utils.counters["frames"]) == {"total": 1, "ok": 1}
    torch._dynamo.reset()


# --- whose it is -----------------------------------------------------------------------------------------------------


def monitored(*models: nn.Module, steps: int, step: Work) -> list[list[int | None]]:
    """The model FLOPs of each step of each model, in products, under a monitor each."""
    records: list[list[StepRecord]] = [[] for _ in models]
    with ExitStack() as monitors:
        runs = [
            monitors.enter_context(mfu.monitor(model, name=f"m{i}", peaks=PEAKS, on_step=records[i].append))
            for i, model in enumerate(models)
        ]
        for _ in range(steps):
            with ExitStack() as marks:
                for run in runs:
                    marks.enter_context(run.step())
                step()
    return [[None if r.model_flops is None else r.model_flops // PRODUCT for r in each] for each in records]


def test_two_models_in_two_threads() -> None:
    """Each under a monitor, trained at once in a thread of its own: each monitor has its own model's steps."""
    first, second = linear(), nn.Sequential(linear(), linear())

    def step() -> None:
        threads = [threading.Thread(target=train, args=(model,)) for model in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=SOON_S)

    # One forward and one backward; two forward, and three backward.
    assert monitored(first, second, steps=7, step=step) == [[2] * 7, [5] * 7]


def test_a_monitor_in_each_thread() -> None:
    """Two loops in two threads, each with its monitor: neither counts anything of the other's."""
    models = (linear(), nn.Sequential(linear(), linear()))
    together = threading.Barrier(2)
    found: dict[int, list[list[int | None]]] = {}

    def work(i: int) -> None:
        def step() -> None:
            together.wait(timeout=SOON_S)
            train(models[i])

        found[i] = monitored(models[i], steps=6, step=step)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=SOON_S)
    assert found == {0: [[2] * 6], 1: [[5] * 6]}


def test_a_thread_that_ran_before_calls_the_model(loop: Loop) -> None:
    """Forward and backward of the watched model count there too; another model's, in the same thread, do not."""
    model, other = linear(), nn.Sequential(linear(), linear())

    def there() -> None:
        train(model)
        theirs = other(x())
        with torch.no_grad():
            # What it makes no node for must not be taken for the last node's owner.
            model(x())
        theirs.backward(torch.ones_like(theirs))

    def step() -> None:
        train(model)
        loop.run(there)

    assert monitored(model, steps=6, step=step) == [[2 + 3] * 6]


def test_nodes_of_the_same_numbers(loop: Loop) -> None:
    """Autograd numbers its nodes in each thread: another model's, numbered as the watched one's here, are not taken."""
    model, other = linear(), nn.Sequential(linear(), linear())
    ours, one = torch._C._autograd._get_sequence_nr, torch.ones(1, requires_grad=True)

    def catch_up(to: int) -> None:
        while ours() < to:
            one.exp()

    def there() -> None:
        with torch.no_grad():
            model(x())
        train(other)

    def step() -> None:
        at: list[int] = []
        loop.run(lambda: at.append(ours()))
        first = max(ours(), *at)
        catch_up(first)
        loop.run(lambda: catch_up(first))
        train(model)
        loop.run(there)

    assert monitored(model, steps=1, step=step) == [[3]]


def test_a_serving_thread_with_another_model(loop: Loop) -> None:
    """Another model that is served and trained beside the steps, in a thread that ran before, is in no step."""
    model, other = linear(), linear()

    def step() -> None:
        loop.run(lambda: train(other))
        train(model)
        loop.run(lambda: train(other))

    assert monitored(model, steps=6, step=step) == [[2] * 6]


def test_a_loaders_thread() -> None:
    """Products that a thread makes of its data are not the model's, though a step started it; that is said."""
    model = linear()
    batches: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()

    def load() -> None:
        for _ in range(6):
            batches.put(x() @ torch.eye(WIDE))

    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(6):
            with run.step():
                if index == 0:
                    in_thread(load)
                model(batches.get(timeout=SOON_S)).sum().backward()
    assert [r.model_flops for r in records] == [2 * PRODUCT] * 6
    assert [note for note in run.summary().notes if "no module of the model" in note and "aten::mm" in note]


def test_without_a_model_the_modules_in_threads_count() -> None:
    """Where no model is given, what modules do in threads that a step started counts, and a loader's products not."""
    model = linear()
    records: list[StepRecord] = []
    with mfu.monitor(None, peaks=PEAKS, on_step=records.append) as run, run.step():
        in_thread(lambda: x() @ torch.eye(WIDE))
        in_thread(lambda: train(model))
        train(model)
    assert [r.model_flops for r in records] == [4 * PRODUCT]
    assert [note for note in run.summary().notes if "no module of the model" in note and "aten::mm" in note]


def test_work_that_the_model_hands_over_is_the_models() -> None:
    """Products outside of any module, in a thread that a module's forward starts, are that module's."""

    class Threaded(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            found: list[torch.Tensor] = []
            in_thread(lambda: found.append(rows @ torch.eye(WIDE)))
            return found[0]

    model = nn.Sequential(linear(), Threaded())
    count = mfu.count(model, x())
    assert count.by_module == {"Sequential.0": PRODUCT, "Sequential.1": PRODUCT}
    # Two forward; the weight's gradient, and that of the rows of the product in the thread.
    assert monitored(model, steps=4, step=lambda: train(model)) == [[4] * 4]


def test_calls_in_threads_make_the_shape_of_a_step() -> None:
    """Steps of two and of three calls in threads, none of them here: each kind is known by its calls."""
    model = linear()
    sizes = iter((2, 2, 3, 2, 3, 2, 3, 3))
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run, ThreadPoolExecutor(3) as pool:
        for _ in range(8):
            with run.step():
                list(pool.map(train, [model] * next(sizes)))
    assert [r.model_flops for r in records] == [2 * PRODUCT * n for n in (2, 2, 3, 2, 3, 2, 3, 3)]


# --- a good guest ----------------------------------------------------------------------------------------------------


def test_an_exception_in_a_worker() -> None:
    """It reaches who waits for it, unchanged; what ran before it counts, and the pool's thread is as it was."""
    depths: list[int] = []

    def fail() -> None:
        x() @ torch.eye(WIDE)
        raise KeyError("the user's own")

    with ThreadPoolExecutor(1) as pool:

        def run() -> None:
            with pytest.raises(KeyError, match="the user's own"):
                pool.submit(fail).result(timeout=SOON_S)
            x() @ torch.eye(WIDE)

        count = mfu.count(run)
        pool.submit(lambda: depths.append(torch._C._len_torch_dispatch_stack())).result(timeout=SOON_S)
    assert count.forward_flops == 2 * PRODUCT
    assert depths == [0]


def test_an_exception_in_a_watched_call_of_another_thread(loop: Loop) -> None:
    """A forward that fails in a thread that ran before leaves no mode there, and the next steps count as ever."""
    model = nn.Sequential(linear(), nn.Linear(WIDE + 1, WIDE))
    depths: list[int] = []

    def there() -> None:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model(x())
        depths.append(torch._C._len_torch_dispatch_stack())

    def step() -> None:
        loop.run(there)
        model[0](x()).sum().backward()

    # The first layer ran there, and here with a backward.
    assert monitored(model, steps=3, step=step) == [[3] * 3]
    assert depths == [0] * 3


def test_a_thread_that_outlives_the_count() -> None:
    """It goes on uncounted, also while the same mode counts again, and computes what it would."""
    mode = CountingMode()
    go_on, began, results = threading.Event(), threading.Event(), list[torch.Tensor]()

    def work() -> None:
        x() @ torch.eye(WIDE)
        began.set()
        go_on.wait(timeout=SOON_S)
        results.append(torch.ones(ROWS, WIDE) @ torch.eye(WIDE))

    thread = threading.Thread(target=work)
    with mode:
        thread.start()
        began.wait(timeout=SOON_S)
    assert mode.result().model_flops == PRODUCT
    mode.reset()
    with mode:
        go_on.set()
        thread.join(timeout=SOON_S)
        x() @ torch.eye(WIDE)
    assert torch.equal(results[0], torch.ones(ROWS, WIDE))
    assert mode.result().model_flops == PRODUCT


def test_work_that_waits_until_the_count_is_over() -> None:
    """A pool that comes to a counted call only after the count runs it uncounted, while the same mode counts again."""
    mode, go_on = CountingMode(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go_on.wait, SOON_S)
        with mode:
            waiting = pool.submit(lambda: x() @ torch.eye(WIDE))
        mode.reset()
        with mode:
            go_on.set()
            waiting.result(timeout=SOON_S)
    assert mode.result().model_flops == 0


class Answers(TorchDispatchMode):
    """Somebody else's mode, which answers products itself."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.mm.default:
            return torch.zeros(ROWS, WIDE)
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_users_in_a_worker() -> None:
    """Beneath it, ours counts what reaches the device; theirs is on and off when they say so, and sees all."""
    theirs = FlopCounterMode(display=False)

    def work() -> None:
        with theirs:
            x() @ torch.eye(WIDE)
        with Answers():  # type: ignore[no-untyped-call]
            assert not (x() @ torch.eye(WIDE)).any()
        x() @ torch.eye(WIDE)

    assert stages(mfu.count(lambda: in_thread(work))) == (2, 0, 0)
    assert theirs.get_total_flops() == PRODUCT


def test_a_mode_of_the_users_around_a_visit(loop: Loop) -> None:
    """A mode that is on in a thread that calls the watched model stays on, and counts what it would without us."""
    model, theirs = linear(), FlopCounterMode(display=False)

    def there() -> None:
        with theirs:
            train(model)

    assert monitored(model, steps=1, step=lambda: loop.run(there)) == [[2]]
    assert theirs.get_total_flops() == 2 * PRODUCT


def test_nothing_stays_in_the_place_of_pythons() -> None:
    """What counting replaces is as it was, also where another has replaced it meanwhile, and is idle then."""
    before = (threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.apply_async)
    started: list[str] = []
    mode = CountingMode()
    mode.start()
    beneath = threading.Thread.start
    assert beneath is not before[0]

    def theirs(thread: threading.Thread) -> None:
        started.append(thread.name)
        beneath(thread)

    threading.Thread.start = theirs  # type: ignore[assignment,method-assign]
    try:
        in_thread(x)
        mode.stop()
        assert threading.Thread.start is theirs
        in_thread(lambda: x() @ torch.eye(WIDE))
        # Again, above theirs and with the old one still beneath: each thread counts once.
        assert stages(mfu.count(lambda: in_thread(lambda: x() @ torch.eye(WIDE)))) == (1, 0, 0)
        assert len(started) == 3
    finally:
        threading.Thread.start = before[0]  # type: ignore[method-assign]
    assert (threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.apply_async) == before
    assert mode.result().model_flops == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_books(loop: Loop) -> None:
    """The child computes uncounted and does not wait for a lock that nobody there will ever give back."""
    mode = CountingMode()
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with mode._books._lock, mode._lock:
            held.set()
            forked.wait(timeout=SOON_S)

    with mode:
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(timeout=SOON_S)
        child = os.fork()
        if child == 0:
            # Of the products in the child none is counted, in threads neither, and all locks are free.
            signal.alarm(SOON_S)
            torch.set_num_threads(1)
            torch.ones(2, 2) @ torch.ones(2, 2)
            in_thread(lambda: torch.ones(2, 2) + 1)
            os._exit(mode.result().model_flops != 0 or torch._C._len_torch_dispatch_stack() != 0)
        forked.set()
        thread.join(timeout=SOON_S)
        _, status = os.waitpid(child, 0)
        x() @ torch.eye(WIDE)
    assert os.waitstatus_to_exitcode(status) == 0
    assert stages(mode.result()) == (1, 0, 0)


def test_many_threads_enter_at_once() -> None:
    """Eight threads of 200 rounds, each of a product, a batched one and a step of a layer, add up to the last FLOP."""
    threads_, rounds = 8, 200
    models = [linear() for _ in range(threads_)]
    together = threading.Barrier(threads_)

    def work(model: nn.Module) -> None:
        together.wait(timeout=SOON_S)
        for size in range(rounds):
            # Sizes that no other call has, so that prices are made and kept by all at once.
            torch.ones(1, size + 1) @ torch.ones(size + 1, 1)
            torch.softmax(torch.ones(2, 3, 4) @ torch.ones(2, 4, 3), -1) @ torch.ones(2, 3, 5)
            train(model)

    def run() -> None:
        threads = [threading.Thread(target=work, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=SOON_S * 4)

    count = mfu.count(run)
    vectors = sum(2 * (size + 1) for size in range(rounds))
    attention = rounds * 2 * 2 * 3 * 3 * (4 + 5)
    assert count.forward_flops == threads_ * (vectors + attention + rounds * PRODUCT)
    assert count.backward_flops == threads_ * rounds * PRODUCT
    assert count.attention_flops_full == threads_ * attention
    assert (count.uncounted, count.coverage) == ((), 1.0)
