"""Money as pictures: the waterfall from owned to useful hours."""

from collections.abc import Sequence

from mfu_sdk.provider.economics import Stage
from mfu_sdk.provider.pages import charts
from mfu_sdk.provider.pages.engine import told
from mfu_sdk.provider.report import words


def waterfall_chart(stages: Sequence[Stage], currency: str | None) -> charts.Chart | None:
    """From owned GPU-hours to useful ones; what a stage cost is told where `currency` is known."""
    shown = [
        charts.Stage(told(stage.stage), stage.gpu_hours, _tip(stage, currency), is_left=stage.stage == "useful")
        for stage in stages
    ]
    return charts.waterfall(shown, whole="all owned GPU-hours", unit="GPU-hours")


def _tip(stage: Stage, currency: str | None) -> str:
    cost = "" if currency is None or stage.cost is None else f", {words.money(stage.cost, currency)}"
    between = ""
    if stage.gpu_hours_low is not None and stage.gpu_hours_high is not None:
        between = f" ({words.hours(stage.gpu_hours_low)} to {words.hours(stage.gpu_hours_high)})"
    share = f"{words.percent(stage.share)} of what is owned"
    return f"{told(stage.stage)}: {words.hours(stage.gpu_hours)}{between}, {share}{cost}"
