"""Allocated, busy, useful on the pages: each bar with what it is a share of, and nodes with how they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from mfu_sdk.provider.fleet import Figure, FleetUse, NodeUse
from mfu_sdk.provider.fleet.health import STATES
from mfu_sdk.provider.pages.view import PER_PAGE
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.model import Report


@dataclass(frozen=True, slots=True)
class Bar:
    """One share of the chain, what it is `of`, and the colour that it is drawn in."""

    term: str
    share: float | None
    of: str
    kind: str


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that a list of health shows, of `found`, and how many of all are in each state."""

    rows: tuple[NodeUse, ...]
    found: int
    states: tuple[tuple[str, int], ...]


def is_watched(use: FleetUse | None) -> bool:
    """Whether an exporter of the provider's told of any GPU."""
    return use is not None and any(node.watched_gpu_hours for node in use.nodes)


def chain(report: Report) -> tuple[Bar, ...]:
    """From allocated to useful; between them what exporters show of the same hours, where any does."""
    fleet, use = report.fleet, report.fleet_use
    if use is None or not is_watched(use):
        return (
            Bar("Allocated", fleet.factors.allocation, "of the GPU-hours that are owned", "plain"),
            Bar("In steps", fleet.factors.runtime, "of the allocated GPU-hours", "plain"),
            Bar("MFU", fleet.mfu, "of what the devices could have done in those steps", "fill"),
            Bar("Useful", fleet.owned_mfu, "of what everything owned could have done", "fill"),
        )
    held = "allocated GPU-hours" if use.over == "allocated" else "GPU-hours"
    told = f"{held} that DCGM told of"
    return (
        Bar("Allocated", use.allocation.value, f"of {_hours(use.allocation, 'GPU-hours owned')}", "plain"),
        Bar("GPU utilization", use.gpu_utilization.value,
            f"any kernel running, of {_hours(use.gpu_utilization, told)}{_rest(use.gpu_utilization)}", "plain"),
        Bar("Tensor activity", use.tensor_activity.value,
            f"tensor pipes busy, of {_hours(use.tensor_activity, told)}{_rest(use.tensor_activity)}", "plain"),
        # The factor is by peak, as useful is; allocation and what exporters tell are by GPU-hours.
        Bar("In steps", fleet.factors.runtime, "of the allocated GPU-hours, weighted by peak", "plain"),
        Bar("MFU", use.mfu.value,
            f"of what the devices could have done in {_hours(use.mfu, 'GPU-hours of steps')}{_sent(use.mfu)}", "fill"),
        Bar("Useful", use.owned_mfu.value, f"of what {_hours(use.owned_mfu, 'GPU-hours owned')} could have done",
            "fill"),
    )  # fmt: skip


def guess(use: FleetUse | None) -> Bar | None:
    """The estimate for hours without steps, with how good it is; None where there is none."""
    if use is None or use.estimated_mfu.value is None:
        return None
    over = f"{_hours(use.estimated_mfu, 'GPU-hours without steps')}{_rest(use.estimated_mfu)}"
    of = f"an estimate, in none of the MFUs above, over {over}; {use.estimate_error}"
    return Bar("Without the SDK", use.estimated_mfu.value, of, "none")


def nodes(use: FleetUse, find: str) -> Nodes:
    """The first nodes, unhealthy ones first, of those whose name, GPU types or state have every word of `find`."""
    sought = find.casefold().split()
    found = [node for node in use.nodes if all(word in _text(node) for word in sought)]
    return Nodes(tuple(found[:PER_PAGE]), len(found), _states(use.nodes))


def node(use: FleetUse | None, host: str) -> NodeUse | None:
    """How `host` is; None where no exporter and no step told of it, or the reader may not see it."""
    return next((each for each in use.nodes if each.host == host), None) if use is not None else None


def _states(of: Sequence[NodeUse]) -> tuple[tuple[str, int], ...]:
    counts = ((state, sum(node.state == state for node in of)) for state in STATES)
    return tuple((state, count) for state, count in counts if count)


def _text(node: NodeUse) -> str:
    return f"{node.host} {' '.join(node.gpu_types)} {node.state}".casefold()


def _hours(figure: Figure, what: str) -> str:
    return f"the {what}" if figure.gpu_hours is None else f"{figure.gpu_hours:,.1f} {what}"


def _rest(figure: Figure) -> str:
    return "" if figure.owned_share is None else f", {words.percent(figure.owned_share)} of those owned"


def _sent(figure: Figure) -> str:
    # The hours are of steps, the share is of all hours for which somebody held their devices.
    if figure.owned_share is None:
        return ""
    return f"; devices that sent them were held for {words.percent(figure.owned_share)} of those owned"
