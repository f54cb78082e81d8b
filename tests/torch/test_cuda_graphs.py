"""A replayed CUDA graph is charged with what was captured in it.

No GPU is needed here, and none is used: `Graph` stands in for `torch.cuda.CUDAGraph`. It runs what is captured on the
processor, as well as noting it, and runs it again to replay, where no mode sees it. What the real class does is for
tests/gpu/test_cuda.py.
"""

import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import mfu_sdk as mfu
from mfu_sdk.counting import cuda_graphs, part, recipes
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.errors import MfuError
from mfu_sdk.records import Count, StepRecord
from mfu_sdk.run import engine, opening, sight
from mfu_sdk.run.clock import HostClock


class _Notes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], Any]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(lambda: func(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


class Graph:
    """The stand-in: a captured graph is a list of calls."""

    capturing: ClassVar[list["Graph"]] = []

    def capture_begin(self) -> None:
        self.capturing.append(self)
        self._notes = _Notes()
        self._notes.__enter__()  # type: ignore[no-untyped-call]

    def capture_end(self) -> None:
        self._notes.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.capturing.remove(self)

    def replay(self) -> None:
        with _disable_current_modes(), torch.no_grad():
            for call in self._notes.calls:
                call()


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(Graph.capturing))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(Graph.capturing))
    for module in (part, sight, engine):
        monkeypatch.setattr(module, "_CUDA", True)
    before = dict(Graph.__dict__)
    yield
    assert dict(Graph.__dict__) == before
    assert not Graph.capturing


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for a value while a stream is captured is an error, as it is on a device.

    But for tensors of `recipes`' own, which lie on the processor whatever the program's do.
    """
    for name in ("__int__", "__bool__", "item", "tolist"):
        original = getattr(Tensor, name)

        def read(self: Tensor, original: Any = original) -> Any:
            own = any(frame.frame.f_globals["__name__"] == recipes.__name__ for frame in inspect.stack(0))
            assert own or not Graph.capturing, "a tensor was read during a capture"
            return original(self)

        monkeypatch.setattr(Tensor, name, read)


def capture(fn: Callable[[], Any]) -> Graph:
    graph = Graph()
    graph.capture_begin()
    try:
        fn()
    finally:
        graph.capture_end()
    return graph


def replayed(fn: Callable[[], Any]) -> Count:
    """What the replay of a graph costs in which `fn` was captured."""
    graph = watched(fn)
    return mfu.count(lambda: graph.replay())


def watched(fn: Callable[[], Any]) -> Graph:
    """A graph that was captured while a monitor lived, and nothing was counted."""
    leave = cuda_graphs.keep()
    try:
        return capture(fn)
    finally:
        leave()


def parts(count: Count) -> tuple[int, ...]:
    return count.forward_flops, count.backward_flops, count.recompute_flops, count.optimizer_flops


def test_a_replay_costs_what_was_captured() -> None:
    """Each replay is charged, with the dtype and operators of the capture; the capture itself is not."""
    x = torch.randn(4, 8)
    graphs: list[Graph] = []
    assert mfu.count(lambda: graphs.append(capture(lambda: x @ x.T))).model_flops == 0
    mode = CountingMode()
    with mode:
        graphs[0].replay()
        graphs[0].replay()
    counted = mode.result()
    assert counted.forward_flops == 2 * 2 * 4 * 8 * 4
    assert (counted.by_op, counted.by_dtype) == ({"aten::mm": 512}, {"float32": 512})
    assert (counted.coverage, counted.uncounted) == (1.0, ())


def test_a_trained_step() -> None:
    """Forward and backward of a captured step keep their stages; a replay equals eager code, and a pencil."""
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 1)), torch.randn(4, 8)

    def step() -> None:
        model(x).sum().backward()

    counted = replayed(step)
    forward = 2 * 4 * (8 * 16 + 16)
    assert parts(counted) == (forward, forward + 2 * 4 * 16, 0, 0)
    assert parts(counted) == parts(mfu.count(step))
    assert counted.by_module == mfu.count(step).by_module


def test_graphed_forward_and_backward() -> None:
    """Graphs that are replayed in an autograd function, as make_graphed_callables has them, count in their stages."""
    w, x = torch.randn(8, 8), torch.randn(4, 8)
    forward, backward = watched(lambda: x @ w), watched(lambda: x.T @ x)

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            forward.replay()
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            backward.replay()
            return grad

    given = torch.randn(4, 8, requires_grad=True)
    counted = mfu.count(lambda: Graphed.apply(given).sum().backward())  # type: ignore[no-untyped-call]
    assert parts(counted) == (2 * 4 * 8 * 8, 2 * 8 * 4 * 8, 0, 0)


def test_a_graph_that_nobody_saw_made() -> None:
    """Its replays are listed, and coverage says that nothing is known of how much of the step they are."""
    x = torch.randn(4, 4)
    graph = capture(lambda: x @ x)
    mode = CountingMode()
    with mode:
        _ = x @ x
        graph.replay()
    counted = mode.result()
    assert counted.model_flops == 2 * 4**3
    assert [(entry.op, entry.calls) for entry in counted.uncounted] == [("cuda::graph_replay", 1)]
    assert counted.coverage == 0


@pytest.mark.usefixtures("unreadable")
def test_nothing_is_read_while_capturing() -> None:
    """A mask that is an input is not read, so its attention is uncounted; one made in the capture is followed."""
    q = torch.randn(1, 1, 8, 16)
    given = torch.zeros(8, 8).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), float("-inf"))
    blind = replayed(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=given))
    assert blind.model_flops == 0
    assert len(blind.uncounted) == 1
    assert blind.coverage < 1
    spelled = replayed(lambda: (q @ q.mT + given).softmax(-1) @ q)
    assert [entry.op for entry in spelled.uncounted] == ["aten::add"]
    assert spelled.coverage < 1

    def attend() -> Tensor:
        hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
        return (q @ q.mT).masked_fill(hidden, float("-inf")).softmax(-1) @ q

    assert replayed(attend).attention_flops_exact == 4 * 36 * 16
    # The mode of a counted step reads nothing either.
    mfu.count(lambda: capture(lambda: (q @ q.mT + given).softmax(-1) @ q))


def test_a_priced_function_is_handed_no_data() -> None:
    """A formula of the user's that reads its arguments has no answer in a capture: its operators count instead."""

    def packed(x: Tensor, ends: Tensor) -> Tensor:
        return x @ x.mT

    mfu.register_flops(packed, lambda x, ends, out: 1000 * int(ends[-1]), raw=True)
    x, ends = torch.randn(4, 4), torch.tensor([4])
    counted = replayed(lambda: packed(x, ends))
    assert counted.model_flops == 2 * 4**3
    assert len(counted.uncounted) == 1
    assert mfu.count(packed, x, ends).model_flops == 4000


@pytest.mark.filterwarnings("ignore:::torch")
def test_compiled_code_in_a_graph() -> None:
    """A compiled graph that is captured is charged by its text, at each replay."""
    fast = torch.compile(lambda x: (x @ x).relu())
    x = torch.randn(8, 8)
    fast(x)
    graph = watched(lambda: fast(x))
    assert mfu.count(lambda: graph.replay()).by_op == {"aten::mm": 2 * 8**3}


def test_monitored() -> None:
    """A monitor knows what was captured between its steps: each step that replays has the FLOPs of eager code."""
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    flops: list[int | None] = []
    with mfu.monitor(model, on_step=lambda record: flops.append(record.model_flops)) as run:
        graph = capture(lambda: model(x).sum().backward())
        for _ in range(4):
            with run.step():
                graph.replay()
    assert flops == [2 * 2 * 4 * 8 * 8] * 4


@pytest.fixture
def _on_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch's own `make_graphed_callables` run here: what it asks of a device does nothing."""

    @contextmanager
    def graph(cuda_graph: Graph, pool: object = None) -> Iterator[None]:
        cuda_graph.capture_begin()
        try:
            yield
        finally:
            cuda_graph.capture_end()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda.graphs, "graph_pool_handle", lambda: None)


@pytest.mark.usefixtures("_on_stand_ins")
def test_a_watched_model_is_graphed() -> None:
    """torch graphs no module with hooks: ours are off meanwhile and on again after it, and each step costs its due."""
    theirs = torch.cuda.make_graphed_callables
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), torch.randn(4, 8)
    flops: list[int | None] = []
    with mfu.monitor(model, on_step=lambda record: flops.append(record.model_flops)) as run:
        hooks = dict(model._forward_pre_hooks)
        assert hooks
        torch.cuda.make_graphed_callables(model, (x,))
        assert model._forward_pre_hooks == hooks
        for _ in range(4):
            with run.step():
                model(x).sum().backward()
        model.register_forward_hook(lambda *_: None)
        with pytest.raises(AssertionError, match="must not have hooks"):
            torch.cuda.make_graphed_callables(model, (x,))
        assert model._forward_pre_hooks == hooks
    # The first layer has no input gradient.
    assert flops == [2 * 4 * (2 * 8 * 16 + 3 * 16 * 4)] * 4
    assert torch.cuda.make_graphed_callables is torch.cuda.graphs.make_graphed_callables is theirs


class _Clock(HostClock):
    """A device's clock as far as captures go: it is neither marked nor asked while one is under way."""

    def mark(self) -> Any:
        assert not Graph.capturing, "a mark was made in a capture"
        return super().mark()

    def elapsed_s(self, start: Any, end: Any) -> float:
        assert not Graph.capturing, "a mark was asked for during a capture"
        return super().elapsed_s(start, end)


def test_no_mark_is_made_while_capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step is captured after unmarked ones, its optimizer too: it ends none, begins none, and has no call."""
    monkeypatch.setattr(opening, "clock_for", lambda _device: _Clock())
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []

    def train() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).sum().backward()
        optimizer.step()

    with mfu.monitor(model, on_step=records.append) as run:
        for _ in range(3):
            train()
        graph = capture(train)
        for _ in range(4):
            with run.step():
                graph.replay()
    # The third of the unmarked steps was under way when the first mark said that it was none.
    assert [record.model_flops for record in records] == [2 * 2 * 4 * 8 * 8] * 6


def test_another_capture_of_the_same_graph() -> None:
    """A graph that is captured again costs what it holds then; one whose capture failed holds nothing known."""
    x = torch.randn(4, 4)
    mode = CountingMode()
    with mode:
        graph = capture(lambda: x @ x)
        graph.capture_begin()
        _ = x @ x @ x
        graph.capture_end()
        graph.replay()
    assert mode.result().model_flops == 2 * 2 * 4**3


def test_a_capture_that_never_ends() -> None:
    """Where nobody watches any more, nothing notes any more, and the stack of modes is as it was."""
    graph = Graph()
    leave = cuda_graphs.keep()
    assert not cuda_graphs.captures()
    graph.capture_begin()
    assert cuda_graphs.captures()
    leave()
    assert not cuda_graphs.captures()
    assert torch._C._len_torch_dispatch_stack() == 1
    graph.capture_end()


def test_no_garbage_is_collected_while_capturing() -> None:
    """A graph in a cycle that is freed meanwhile would end the capture; an abandoned one puts it off no longer."""

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    freed = weakref.ref(Cycle())
    leave = cuda_graphs.keep()
    try:
        first, second = Graph(), Graph()
        first.capture_begin()
        second.capture_begin()
        garbage = [[] for _ in range(10 * gc.get_threshold()[0])]  # type: ignore[var-annotated]
        assert freed() is not None
        second.capture_end()
        assert not gc.isenabled()
        first.capture_end()
        assert gc.isenabled()
        del first, second
        abandoned = Graph()
        abandoned.capture_begin()
        assert not gc.isenabled()
        abandoned._notes.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        Graph.capturing.clear()
        del abandoned
        assert gc.isenabled()
        gc.disable()
        capture(lambda: None)
        assert not gc.isenabled(), "what the program has turned off stays off"
    finally:
        gc.enable()
        leave()
    assert len(garbage) > 0


def test_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours costs the count, and not the capture."""
    monkeypatch.setenv("MFU_GUARD", "log")
    monkeypatch.setattr("mfu_sdk.counting.recording.RecordingMode.start", _fails)
    x = torch.randn(4, 4)
    counted = replayed(lambda: x @ x)
    assert [entry.op for entry in counted.uncounted] == ["cuda::graph_replay"]


def _fails(*_: Any) -> None:
    raise MfuError("a fault of ours")
