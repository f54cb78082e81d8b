"""The process that `mfu verify` starts: finds the work in a user's program and runs it under the witnesses."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from mfu_sdk import __version__
from mfu_sdk.counting.differences import Row, beside_fvcore, beside_torch
from mfu_sdk.counting.traced import floats_in
from mfu_sdk.counting.verify import Comparison, Line, Verification
from mfu_sdk.counting.witnesses import Witnesses
from mfu_sdk.errors import ConfigurationError, MfuError


class _Done(BaseException):
    """Unwinds the user's script once its step was counted."""


def main() -> None:
    """Write what was found, or what was wrong, as JSON where the starter wants it."""
    given = json.loads(sys.argv[1])
    target, arguments = sys.argv[2], sys.argv[3:]
    witnesses = Witnesses(with_torch=not given["why_no_torch"], why_not=given["why_no_torch"])
    answer: dict[str, Any]
    try:
        answer = _verified(target, arguments, witnesses, forward_only=given["forward_only"]).as_json()
    except MfuError as error:
        answer = {"error": str(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's program may raise anything
        said = (str(error).strip() or "no message").splitlines()[0][:160]
        failure = f"{type(error).__name__}: {said}"
        if witnesses.started and not given["why_no_torch"]:
            # Perhaps of torch's counter; a second try without it tells.
            answer = {"failed": failure}
        else:
            traceback.print_exception(error.with_traceback(_users_part(error.__traceback__)))
            answer = {"error": f"{target}: failed before its first step was over ({failure}); make it run by itself"}
    Path(given["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """What a traceback says below this package and Python's own ways to start a program."""
    ours = (str(Path(__file__).parent), "<frozen ")
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    return trace


def _verified(target: str, arguments: list[str], witnesses: Witnesses, *, forward_only: bool) -> Verification:
    try:
        if ":" in target and not Path(target).exists():
            if arguments:
                raise ConfigurationError(f"{arguments[0]!r}: {target} is called without arguments; leave it out")
            work = _called(target, witnesses, forward_only=forward_only)
        else:
            work = _scripted(target, arguments, witnesses, forward_only=forward_only)
    finally:
        witnesses.stop()
    return _summed(target, work, witnesses)


# --- a script: from its first forward to its first optimizer step ----------------------------------------------------


def _scripted(script: str, arguments: list[str], witnesses: Witnesses, *, forward_only: bool) -> str:
    what = "is a directory" if Path(script).is_dir() else "no such file"
    if script.endswith(".ipynb"):
        what = "is a notebook, which is no script"
    if not Path(script).is_file() or script.endswith(".ipynb"):
        raise ConfigurationError(f"{script}: {what}; give a script, package.module:callable or file.py:callable")
    step = _Step(witnesses, forward_only=forward_only)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    with step.hooks():
        try:
            runpy.run_path(script, run_name="__main__")
        except _Done:
            pass
        except SystemExit:
            if not step.begun:
                raise
    if not step.begun:
        raise ConfigurationError(
            f"{script}: ended without a forward with gradients on; "
            "--forward verifies the first forward alone, whatever its mode"
        )
    return step.words


class _Step:
    """Starts the witnesses at the first forward that may train, and stops the script after the optimizer stepped."""

    def __init__(self, witnesses: Witnesses, *, forward_only: bool) -> None:
        self._witnesses = witnesses
        self._forward_only = forward_only
        self._model: torch.nn.Module | None = None
        self.begun = False
        self._ended = False
        self.words = "from the first forward to the script's end"

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for handle in (
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after),
                register_optimizer_step_post_hook(self._stepped),
            ):
                stack.callback(handle.remove)
            yield

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        if self.begun or not (self._forward_only or torch.is_grad_enabled()):
            return
        self.begun = True
        self._model = module
        self._witnesses.called(module, args, _keywords(sys._getframe(1)))
        self._witnesses.start()

    def _after(self, module: torch.nn.Module, _args: Any, _output: Any) -> None:
        if self._forward_only and module is self._model:
            self._end(f"the first forward of {type(module).__name__}")

    def _stepped(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if self.begun:
            self._end(f"the first training step of {type(self._model).__name__} ({type(optimizer).__name__})")

    def _end(self, words: str) -> None:
        self._witnesses.stop()
        if not self._ended:
            self._ended, self.words = True, words
        # At every later step too, should the script catch everything.
        raise _Done


# --- a callable ------------------------------------------------------------------------------------------------------


def _called(target: str, witnesses: Witnesses, *, forward_only: bool) -> str:
    made = _imported(target)()
    if callable(made) and not isinstance(made, torch.nn.Module):
        work, words = made, f"what {target} returned, called once"
    else:
        work, words = _step_of(target, made, forward_only=forward_only)
    seen = register_module_forward_pre_hook(
        lambda module, args: witnesses.called(module, args, _keywords(sys._getframe(1)))
    )
    try:
        witnesses.start()
        work()
    finally:
        witnesses.stop()
        seen.remove()
    return words


def _keywords(caller: FrameType) -> Mapping[str, Any]:
    """The keywords of the call that runs a global forward pre-hook: torch hands these hooks the arguments alone."""
    found: Mapping[str, Any] = caller.f_locals.get("kwargs", {})
    return found


def _imported(target: str) -> Callable[[], Any]:
    where, _, name = target.rpartition(":")
    try:
        module = _file(Path(where)) if where.endswith(".py") else _package(where)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as missing:
        raise ConfigurationError(f"{target}: {missing}; name a function of that module") from missing
    if not callable(found):
        raise ConfigurationError(f"{target}: is {type(found).__name__}; must be callable without arguments")
    return found  # type: ignore[no-any-return]  # anything callable


def _package(name: str) -> ModuleType:
    # As `python -m` has it.
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not name.startswith(missing.name):
            raise
        raise ConfigurationError(f"{name}: no module of this name; run mfu verify where Python finds it") from missing


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file; give a script, package.module:callable or file.py:callable")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _step_of(target: str, made: Any, *, forward_only: bool) -> tuple[Callable[[], Any], str]:
    """The work of a (model, arguments) pair: a forward, and the backward of the sum of what came out."""
    parts = made if isinstance(made, tuple) and len(made) in (2, 3) else (None, ())
    model, args, kwargs = parts if len(parts) == 3 else (*parts, {})
    if isinstance(args, Mapping):
        args, kwargs = (), args
    elif not isinstance(args, (tuple, list)):
        args = (args,)
    if not isinstance(model, torch.nn.Module) or not isinstance(kwargs, Mapping):
        raise ConfigurationError(
            f"{target}: returned {type(made).__name__}; must return (model, args), (model, args, kwargs) or a function "
            "without arguments that does the work"
        )

    def forward() -> Any:
        with torch.no_grad():
            return model(*args, **kwargs)

    def train() -> None:
        output = model(*args, **kwargs)
        loss = getattr(output, "loss", None)
        if loss is None:
            held = [tensor for tensor in floats_in(output) if tensor.requires_grad]
            if not held:
                raise ConfigurationError(f"{target}: nothing in its output wants a gradient; use --forward")
            loss = sum((tensor.abs().sum() for tensor in held[1:]), held[0].abs().sum())
        loss.backward()

    name = type(model).__name__
    if forward_only:
        return forward, f"one forward of {name}"
    return train, f"one forward and backward of {name}"


# --- the answer ------------------------------------------------------------------------------------------------------


def _summed(target: str, work: str, witnesses: Witnesses) -> Verification:
    observed = witnesses.observed()
    comparisons = []
    if observed.torch is not None:
        rows = beside_torch(observed, observed.torch)
        comparisons.append(_comparison(f"torch {torch.__version__}'s FlopCounterMode", "the same step", rows))
    if observed.fvcore is not None:
        version = importlib.metadata.version("fvcore")
        rows = beside_fvcore(observed.fvcore)
        words = f"the first forward of {observed.model}, its multiply-adds × 2"
        comparisons.append(_comparison(f"fvcore {version}", words, rows))
    count = observed.count
    return Verification(
        target=target,
        work=f"{work} (mfu-sdk {__version__})",
        model_flops=count.model_flops,
        hardware_flops=count.hardware_flops,
        coverage=count.coverage,
        uncounted=tuple((each.op, each.calls, each.module) for each in count.uncounted),
        comparisons=tuple(comparisons),
        notes=observed.notes,
    )


def _comparison(witness: str, work: str, rows: tuple[Row, ...]) -> Comparison:
    lines = tuple(
        Line(row.op, row.calls, row.ours, row.theirs, tuple((r.flops, r.rule, r.words) for r in row.reasons),
             row.unexplained)
        for row in rows
    )  # fmt: skip
    return Comparison(witness, work, sum(row.ours or 0 for row in rows), sum(row.theirs for row in rows), lines)


if __name__ == "__main__":
    main()
