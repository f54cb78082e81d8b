"""The figures of a run while it runs."""

import io
from dataclasses import replace

from rich.console import Console

from mfu_sdk.bars import Bar
from mfu_sdk.records import RunSummary
from mfu_sdk.run.live import LiveLine, line, live_line, plain
from mfu_sdk.run.totals import disabled_summary

START = replace(disabled_summary("llama", "exact"), notes=())
EARLY = replace(START, steps=3)
# 400 of 1,000 available FLOPs; then 600 of 2,000: lately 200 of 1,000.
BEFORE = replace(START, steps=10, mfu=0.4, model_flops=400)
NOW = replace(
    START,
    steps=1234,
    mfu=0.3,
    model_flops=600,
    expected_mfu=0.5,
    tokens_per_s=12345.6,
    bars=(
        Bar("mfu", 0.3, 3.0, "measured"),
        Bar("data_wait", 0.2, 2.0, "measured"),
        Bar("host_gap", 0.1, 1.0, "sampled"),
        Bar("unexplained", 0.4, 4.0, "rest"),
    ),
)


def said(summary: RunSummary, before: RunSummary | None = None) -> list[str]:
    return [text for text, _ in line(summary, before)]


def test_the_line_by_hand() -> None:
    """MFU since the line before, the run's, what was expected, tokens, and the longest bar that is a loss."""
    assert said(NOW, BEFORE) == [
        "llama",
        "step 1,234",
        "MFU 20.0%",
        "run 30.0%",
        "expected 50.0%",
        "12,346 tokens/s",
        "biggest loss data wait 20.0%",
    ]
    assert said(EARLY) == ["llama", "step 3", "MFU unknown yet"]
    assert plain(BEFORE) == "llama · step 10 · MFU 40.0%"


def test_nothing_new_is_the_runs_own() -> None:
    """Where no step was timed since, or the sums went back, the run's MFU stands alone."""
    assert said(replace(NOW, steps=1240), NOW)[1:3] == ["step 1,240", "MFU 30.0%"]
    assert said(BEFORE, NOW)[2] == "MFU 40.0%"
    assert said(BEFORE, EARLY)[2] == "MFU 40.0%"


def test_unknown_steps_are_said() -> None:
    """Steps that are in no sum make the MFU one of the others only."""
    assert said(replace(NOW, unknown_steps=7))[-1] == "7 steps unknown"


def terminal(width: int = 200) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=True, width=width, legacy_windows=False), written


def test_it_is_drawn_when_it_is_due() -> None:
    """Its thread asks by drawing; the last word stays on the screen, and the terminal has its cursor."""
    console, written = terminal()
    shown = LiveLine(console)
    try:
        assert shown.due
        shown.show(BEFORE)
        assert shown._drawn().plain == "llama · step 10 · MFU 40.0%"
        # Drawing it has asked for the next.
        assert shown.due
        shown.show(NOW)
        assert "MFU 20.0% · run 30.0%" in shown._drawn().plain
    finally:
        shown.close(NOW)
    assert not shown._live.is_started
    assert "MFU 30.0%" in written.getvalue().rpartition("\r")[2]
    assert written.getvalue().count("\x1b[?25h") >= written.getvalue().count("\x1b[?25l")


def test_a_narrow_terminal_cuts_the_line() -> None:
    """One line stays one line."""
    console, written = terminal(30)
    shown = LiveLine(console)
    shown.close(NOW)
    assert "…" in written.getvalue()
    assert written.getvalue().count("\n") == 1


def test_no_terminal_no_line() -> None:
    """In a pipe nothing is drawn."""
    assert live_line(Console(file=io.StringIO())) is None
