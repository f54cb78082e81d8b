"""Run a program as Python itself would: its `__main__`, its `sys.argv` and `sys.path`, its errors and its exit code.

Python's own ways (`runpy`) take the program's `__main__` away once it ends. Here it stays, for what runs later: exit
handlers, threads, and child processes that look up what they were sent.
"""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import NoReturn

from mfu_sdk.errors import ConfigurationError


class Ended(BaseException):
    """The program ended with `error`, which is to end this process as it would have ended the program's own.

    A `BaseException`, so that no command line library on the way takes it for an error of its own.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def finish(self) -> NoReturn:
        """Raise the error to the top, where Python turns it into a traceback and an exit code; none of it shows us."""
        error, trace = self.error, _programs_part(self.error.__traceback__)
        told = sys.excepthook

        def tell(kind: type[BaseException], value: BaseException, whole: TracebackType | None) -> None:
            # Python's own hook shows what the exception carries, whatever it is given.
            told(kind, value, value.with_traceback(trace).__traceback__ if value is error else whole)

        sys.excepthook = tell
        raise error


def run(target: str, arguments: Sequence[str], *, as_module: bool) -> None:
    """Run `target`, a script or (`python -m`) a module, to its end in this process.

    Raises `ConfigurationError` where there is no such program, and `Ended` with whatever the program ended with.
    """
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    code = _module(target, main) if as_module else _script(target, main)
    # A module's own place stands in for its name, as `python -m` has it.
    sys.argv = [main.__file__ or target if as_module else target, *arguments]
    sys.modules["__main__"] = main
    try:
        exec(code, main.__dict__)  # noqa: S102 - the user's program, which they asked us to run
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised again
        raise Ended(error) from None


def _script(target: str, main: ModuleType) -> CodeType:
    path = Path(target)
    if path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)):
        return _archive(target, main)
    if not path.is_file():
        raise ConfigurationError(f"{target}: {_why_not(target)}")
    _first_on_path(os.path.dirname(os.path.realpath(target)))  # noqa: PTH120 - an empty name stays what it is
    main.__file__ = os.path.abspath(target)  # noqa: PTH100 - links are not followed, as Python does not
    main.__dict__["__cached__"] = None
    main.__loader__ = loader = SourceFileLoader("__main__", main.__file__)
    with io.open_code(main.__file__) as file:
        source = file.read()
    try:
        return loader.source_to_code(source, target)
    except SyntaxError as error:
        # Without a traceback, as where Python finds no program in a file.
        raise Ended(error.with_traceback(None)) from None


def _archive(target: str, main: ModuleType) -> CodeType:
    """A directory or a zip file with a `__main__` in it."""
    place = os.path.abspath(target)  # noqa: PTH100 - links are not followed, as Python does not
    _first_on_path(place)
    spec = PathFinder.find_spec("__main__", [place])
    if spec is None:
        raise ConfigurationError(f"{target}: has no __main__ module in it; name a script, or give its module with -m")
    return _loaded(spec, main)


def _module(target: str, main: ModuleType) -> CodeType:
    _first_on_path(str(Path.cwd()))
    name = target
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{target}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not name.startswith(missing.name):
            raise Ended(missing) from None
        spec = None
    except BaseException as error:  # noqa: BLE001 - as above
        # The package that it lies in runs as it is looked up.
        raise Ended(error) from None
    if spec is None:
        raise ConfigurationError(f"-m {target}: no module named {name}; run it where `python -m {target}` works")
    return _loaded(spec, main)


def _loaded(spec: ModuleSpec, main: ModuleType) -> CodeType:
    code = getattr(spec.loader, "get_code", lambda _: None)(spec.name)
    if code is None:
        raise ConfigurationError(f"{spec.name}: has no Python code to run; name a script or a module that has")
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    main.__file__ = spec.origin
    main.__dict__["__cached__"] = spec.cached
    return code  # type: ignore[no-any-return]  # what `get_code` is there for


def _first_on_path(folder: str) -> None:
    """Put the program's folder where ours is, unless Python was told to leave such folders out (`-P`, `-I`)."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _why_not(target: str) -> str:
    if (found := shutil.which(target)) is not None:
        return (
            f"is a program ({found}), not a script; put mfu behind a launcher, like "
            "`torchrun --no-python mfu run train.py`, or name the Python script that it starts"
        )
    if "." in target and "/" not in target and not target.endswith(".py"):
        return "no such file; a module's name goes with -m"
    return "no such file; give a Python script, or a module's name with -m"


def _programs_part(trace: TracebackType | None) -> TracebackType | None:
    """What a traceback says below this file and Python's import of what the program is in."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen importlib._bootstrap>"):
        trace = trace.tb_next
    return trace
