"""A summary's waterfall as a picture."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from mfu_sdk.bars import percent
from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.records import RunSummary

_FORMATS: Final = (".svg", ".png", ".pdf")
_USEFUL, _LOST, _UNKNOWN, _INK, _FAINT = "#1f6f5c", "#c9782f", "#b9bfc6", "#22272e", "#6b7480"


def draw(summary: RunSummary, path: str | Path) -> None:
    """Write the waterfall of `summary` to `path`, as SVG, PNG or PDF by its ending.

    Raises `ConfigurationError` for another ending or a summary without bars, `MissingDependencyError` without
    matplotlib. Only a figure of our own is made: the user's style, backend and open figures stay as they are.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ConfigurationError(f"{path}: must end in {', '.join(_FORMATS)}, which says what is written")
    if not summary.bars:
        raise ConfigurationError(f"{summary.name}: its MFU is unknown, so there is no waterfall; its notes say why")
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(
            'matplotlib is not installed: pictures are drawn with it; pip install "mfu-sdk[plot]", or print the summary'
        ) from error
    figure = figures.Figure(figsize=(8.0, 0.6 + 0.36 * (len(summary.bars) + 2)), layout="constrained")
    _fill(figure.subplots(), summary)
    peak = (summary.peak_flops_per_s or 0.0) / 1e12
    figure.suptitle(
        f"{summary.name}: {percent(summary.mfu or 0.0)} of {peak:,.3g} TFLOP/s {summary.peak_dtype}, "
        f"{summary.timed_steps} timed steps on {summary.device}",
        x=0.01,
        ha="left",
        fontsize=10,
        color=_INK,
    )
    figure.savefig(path, dpi=160, facecolor="white")


def _fill(axes: Any, summary: RunSummary) -> None:
    bars = summary.bars
    begin = 0.0
    lowest, highest = 0.0, 1.0
    for row, bar in enumerate(bars):
        colour = _USEFUL if bar.name == "mfu" else _UNKNOWN if bar.known == "rest" else _LOST
        left, right = sorted((begin, begin + bar.share))
        # What was reckoned and not timed is hatched.
        hatch = "////" if bar.known == "modelled" else None
        axes.barh(row, right - left, left=left, color=colour, edgecolor="white", hatch=hatch, height=0.72)
        if row:
            axes.plot([begin, begin], [row - 1, row], color=_FAINT, linewidth=0.6)
        # On the side where there is room for it, or within.
        beside, align, ink = right + 0.01, "left", _INK
        if right > 0.85:
            beside, align, ink = (left - 0.01, "right", _INK) if left > 0.12 else (right - 0.01, "right", "white")
        axes.text(beside, row, percent(bar.share), va="center", ha=align, fontsize=9, color=ink)
        begin += bar.share
        lowest, highest = min(lowest, left), max(highest, right)
    axes.set_xlim(lowest, highest)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks(range(len(bars)), [f"{_words(bar.name)}  ({bar.known})" for bar in bars], fontsize=9)
    axes.xaxis.set_major_formatter(lambda share, _position: f"{share:.0%}")
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="x", color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _words(name: str) -> str:
    return "MFU" if name == "mfu" else name.replace("_", " ")
