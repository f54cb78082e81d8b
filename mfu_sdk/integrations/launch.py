"""`mfu run`: a program that nobody may edit, under a monitor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mfu_sdk.export.destination import configured
from mfu_sdk.integrations import script
from mfu_sdk.integrations.finding import Finder
from mfu_sdk.records import Convention
from mfu_sdk.run.monitor import Monitor, monitor
from mfu_sdk.settings import Settings, Spans

if TYPE_CHECKING:
    from torch import nn


def launch(
    target: str,
    arguments: Sequence[str],
    *,
    as_module: bool = False,
    name: str | None = None,
    spans: Spans | None = None,
    convention: Convention = "exact",
    say: Callable[[str], None] | None = None,
) -> None:
    """Run `target` with `arguments` as Python would, and measure the training that it does.

    `say` is told, once the program has ended, what came of it: the summaries, or why there is none; rank 0 alone says
    so. Raises `ConfigurationError` for what is wrong before the program starts, and `script.Ended` with what the
    program ended with.
    """
    settings = Settings.from_env()
    if spans is not None:
        settings = replace(settings, spans=spans)
    if not settings.enabled:
        script.run(target, arguments, as_module=as_module)
        return
    # A receiver that is no URL is refused here, and not after the first step.
    configured(provider=settings.provider)

    def begin(model: nn.Module | None, class_name: str | None) -> Monitor:
        return monitor(model, name=name or class_name, convention=convention, settings=settings)

    finder = Finder(begin)
    finder.start()
    ended: BaseException | None = None
    try:
        script.run(target, arguments, as_module=as_module)
    except script.Ended as end:
        ended = end.error
        raise
    finally:
        # A process that left `sys.exit(0)` behind did what it was to do.
        failed = ended is not None and not (isinstance(ended, SystemExit) and ended.code in (None, 0))
        summaries = finder.stop(type(ended), ended) if ended is not None and failed else finder.stop()
        if say is not None and finder.is_here and os.environ.get("RANK", "0") == "0":
            for line in map(str, summaries) if summaries else (why_nothing(target, finder),):
                # What the program has printed comes first.
                sys.stdout.flush()
                say(line)


def why_nothing(target: str, finder: Finder) -> str:
    """One line that says why a program was not measured, and what to do."""
    if finder.stepped_aside:
        return f"mfu run: {target} has a monitor of its own, which was left to it"
    if finder.optimizer_steps_seen:
        return f"mfu run: {target} ended before its second step; steps are measured from the second one on"
    if "torch" not in sys.modules:
        return f"mfu run: {target} did not import torch in this process, so there was nothing to measure"
    return (
        "mfu run: no optimizer stepped in this process, so nothing was measured; start child processes that train "
        "with `torchrun --no-python mfu run`, and decorate a request handler with @mfu.inference"
    )
