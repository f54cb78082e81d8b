"""A run's figures while it runs: one line on a terminal, drawn anew twice a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mfu_sdk.bars import Bar, percent
from mfu_sdk.records import RunSummary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REFRESHES_PER_S: Final = 2


def biggest_loss(summary: RunSummary) -> Bar | None:
    """The longest of the bars that are a loss and have a name: neither MFU nor what is unexplained."""
    losses = [bar for bar in summary.bars if bar.name not in ("mfu", "unexplained") and bar.share > 0]
    return max(losses, key=lambda bar: bar.share, default=None)


def line(summary: RunSummary, before: RunSummary | None = None) -> list[tuple[str, str]]:
    """The parts of the line, each with its style: MFU since `before` where steps were timed since, else the run's."""
    said = [(summary.name, "bold"), (f"step {summary.steps:,}", "dim")]
    recent = None if before is None else _since(summary, before)
    if summary.mfu is None:
        # The first steps are counted, and none of them is timed.
        said.append(("MFU unknown yet", "dim"))
    elif recent is None:
        said.append((f"MFU {percent(summary.mfu)}", "bold green"))
    else:
        said += [(f"MFU {percent(recent)}", "bold green"), (f"run {percent(summary.mfu)}", "")]
    if summary.expected_mfu is not None:
        said.append((f"expected {percent(summary.expected_mfu)}", ""))
    if summary.tokens_per_s is not None:
        said.append((f"{summary.tokens_per_s:,.0f} tokens/s", ""))
    if (loss := biggest_loss(summary)) is not None:
        said.append((f"biggest loss {loss.name.replace('_', ' ')} {percent(loss.share)}", "yellow"))
    if summary.unknown_steps:
        said.append((f"{summary.unknown_steps:,} steps unknown", "red"))
    return said


def plain(summary: RunSummary) -> str:
    """The same for where nothing can be drawn anew."""
    return " · ".join(text for text, _ in line(summary))


def _since(summary: RunSummary, before: RunSummary) -> float | None:
    """ΔΣ model FLOPs / ΔΣ available FLOPs of two summaries of one run, None where no known step was timed between."""
    if not summary.mfu or not before.mfu or summary.model_flops is None or before.model_flops is None:
        return None
    available = summary.model_flops / summary.mfu - before.model_flops / before.mfu
    # What is below is the rounding of two quotients.
    if available <= 1e-9 * summary.model_flops / summary.mfu:
        return None
    return max(0.0, (summary.model_flops - before.model_flops) / available)


class LiveLine:
    """The line on a terminal. What the program prints meanwhile appears above it.

    rich's own thread draws it and asks for a new one; whoever keeps the books looks whether it is `due`, and `show`s
    it from their own thread, since books are not read from another. It stays on the screen when it ends.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.text import Text

        self.due = True
        self._text: Text = Text("")
        self._before: RunSummary | None = None
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_S, get_renderable=self._drawn)
        self._live.start()
        # A process that is killed would leave the terminal without its cursor.
        console.show_cursor(show=True)

    def show(self, summary: RunSummary) -> None:
        """From now on this is what is drawn."""
        from rich.text import Text

        self.due = False
        text = Text(no_wrap=True, overflow="ellipsis")
        for index, (said, style) in enumerate(line(summary, self._before)):
            text.append(" · " if index else "", "dim").append(said, style)
        self._text, self._before = text, summary

    def close(self, summary: RunSummary) -> None:
        """Draw the run's last word and leave it there."""
        self._before = None
        self.show(summary)
        self._live.stop()

    def _drawn(self) -> Text:
        self.due = True
        return self._text


def live_line(console: Console | None = None) -> LiveLine | None:
    """A line on the terminal that standard error is, None where it is none (a pipe, a file, a notebook)."""
    if console is None:
        from rich.console import Console

        console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal or console.is_jupyter:
        return None
    return LiveLine(console)
