"""Charts as plain data: what each spec holds, and what becomes of it when it is drawn."""

import html.parser
import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.pages import charts, nodes, picture, runs
from mfu_sdk.provider.pages.charts import Cell, Chart, Curve, Point, Row, Stage
from mfu_sdk.provider.report.model import Node

HOSTILE = "<script>alert(1)</script>\x00\x1b & \"quoted\" 'name' \u202egnp ]]> --> \U0001f4a9"
shares = st.one_of(st.none(), st.floats(0, 1.5))


def layer(chart: Chart | None, number: int) -> dict[str, Any]:
    assert chart is not None
    found: dict[str, Any] = chart.spec["layer"][number]
    return found


def values(chart: Chart | None) -> list[dict[str, Any]]:
    assert chart is not None
    found: list[dict[str, Any]] = chart.spec["data"]["values"]
    return found


def node(host: str | None, model: float | None, available: float | None, gpus: int = 8) -> Node:
    mfu = None if model is None or not available else model / available
    return Node(
        mfu=mfu, expected_mfu=None, model_flop=model, available_flop=available, gpus=gpus, gpu_hours=None, steps=None,
        timed_steps=None, unknown_steps=None, tokens=None, host=host, gpu_types=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("known", "end"),
    [([0.04, None], 0.05), ([0.05], 0.05), ([0.31, 0.11], 0.4), ([1.2], 1.2), ([], 1.0), ([None], 1.0)],
)
def test_scales_end_at_a_round_share(known: list[float | None], end: float) -> None:
    """The next round share above all of them; what is above 100 % is its own end."""
    assert charts.top(known) == end


def test_trend_breaks_where_nothing_was_seen() -> None:
    """A gap stays a null, a point between two gaps is drawn as a dot, and the expectation is a line of its own."""
    known = [0.1, 0.2, None, 0.3, None, 0.1]
    points = [Point(f"2026-11-01T0{hour}:00:00Z", share) for hour, share in enumerate(known)]
    chart = charts.trend(points, 0.35)
    assert [value["v"] for value in values(chart)] == known
    assert [value["alone"] for value in values(chart)] == [False, False, False, True, False, True]
    assert layer(chart, 0)["encoding"]["y"]["scale"]["domain"] == [0, 0.4]
    assert layer(chart, 3)["data"]["values"] == [{"v": 0.35}]
    assert charts.trend(points[:1], None) is None
    assert charts.trend([Point("", None)] * 5, 0.3) is None


def test_rows_are_numbered_as_their_table() -> None:
    """Bars go by the number of their row, whatever the row is called."""
    chart = charts.ranked([Row(0.1, 0.5, "a"), Row(None, None, "b"), Row(0.3, None, "c")], what="MFU", against="it")
    assert [(v["n"], v["v"], v["a"]) for v in values(chart)] == [(1, 0.1, 0.5), (2, None, None), (3, 0.3, None)]
    assert chart is not None
    assert chart.tips == ("a", "b", "c")
    assert charts.ranked([Row(None, 0.5)], what="MFU", against="it") is None


def test_waterfall_closes() -> None:
    """Each bar begins where the one before ended, the last one stands on zero, and empty stages are out."""
    stages = [Stage("unsold", 30), Stage("idle", 0), Stage("input", 50), Stage("useful", 20, is_left=True)]
    drawn = [(v["s"], v["from"], v["to"]) for v in values(charts.waterfall(stages, whole="all", unit="GPU-hours"))]
    assert drawn == [("unsold", 70, 100), ("input", 20, 70), ("useful", 0, 20)]
    assert charts.waterfall([Stage("idle", 0)], whole="all", unit=None) is None


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=12))
def test_waterfalls_have_no_gap(amounts: list[float]) -> None:
    """Whatever the amounts, bars touch and cover the whole once."""
    chart = charts.waterfall([Stage(f"stage {n}", amount) for n, amount in enumerate(amounts)], whole="", unit=None)
    if chart is None:
        assert sum(amounts) == 0
        return
    drawn = values(chart)
    assert drawn[0]["to"] == pytest.approx(sum(amounts))
    assert drawn[-1]["from"] == pytest.approx(0, abs=1e-6 * sum(amounts))
    assert all(after["to"] == before["from"] for before, after in itertools.pairwise(drawn))


def test_curves_differ_by_shape_too() -> None:
    """Two curves, two colours and two shapes; a curve of one point is none."""
    chart = charts.scaling(
        [Curve(((1, 0.5, "a"), (8, 0.4, "b"))), Curve(((8, 0.3, "c"),)), Curve(((8, 0.2, "d"), (64, 0.1, "e")))]
    )
    encoding = layer(chart, 1)["encoding"]
    assert encoding["x"]["axis"]["values"] == [1, 8, 64]
    assert len(set(encoding["color"]["scale"]["range"])) == len(set(encoding["shape"]["scale"]["range"])) == 2
    assert chart is not None
    assert chart.tips == ("a", "b", "d", "e")


def test_steps_are_binned_without_loss_of_extremes() -> None:
    """Five steps in two bins of three and two: the first step, the least, the median, the most."""
    steps = [(10, 0.3), (11, 0.1), (12, 0.2), (13, 0.5), (14, 0.4)]
    assert runs.binned(steps, 2) == ((10, 0.1, 0.2, 0.3), (13, 0.4, 0.45, 0.5))
    assert runs.binned([], 5) == ()


def test_a_run_s_time_adds_up() -> None:
    """What no part accounts for is the kernels' own; a part that is unknown is not drawn, and not a loss of nothing."""
    parts = [runs.Part("waiting for data", 0.2), runs.Part("exposed communication", None)]
    drawn = {v["s"]: round(v["to"] - v["from"], 12) for v in values(runs.waterfall(0.3, parts))}
    assert drawn == {"waiting for data": 0.2, "in kernels, not useful": 0.5, "useful": 0.3}
    assert runs.waterfall(None, parts) is None


# --- the map of nodes ----------------------------------------------------------------------------------------------


def test_nodes_go_by_their_numbers() -> None:
    """node-9 comes before node-10, and a node without a name first."""
    found = nodes.groups([node(host, 1, 4) for host in ("node-10", "node-9", None, "node-1")])
    assert [group.first for group in found] == [None, "node-1", "node-9", "node-10"]


def test_groups_are_sums_never_means() -> None:
    """Two nodes of 1/10 and 9/10 FLOP over very different times are 1.9 of 11, not the mean of their ratios."""
    (group,) = nodes.groups([node("a", 1.0, 10.0), node("b", 0.9, 1.0), node("c", None, None)], most=1)
    assert group.mfu == pytest.approx(1.9 / 11)
    assert (group.nodes, group.first, group.last) == (3, "a", "c")
    assert group.lowest is not None
    assert group.lowest.host == "a"


@given(st.integers(0, 3000))
@settings(max_examples=30)
def test_the_map_stays_small(count: int) -> None:
    """However many nodes, a few hundred cells hold every one of them once."""
    found = nodes.groups([node(f"n{number}", 1, 4) for number in range(count)])
    assert len(found) <= nodes.MOST_CELLS
    assert sum(group.nodes for group in found) == count


# --- drawn ---------------------------------------------------------------------------------------------------------


class Marks(html.parser.HTMLParser):
    """Tags in the order in which they open, and the texts of titles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.titles: list[str] = []
        self._is_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self._is_title = tag == "title"

    def handle_endtag(self, tag: str) -> None:
        self._is_title = False

    def handle_data(self, data: str) -> None:
        if self._is_title:
            self.titles.append(data)


def every_chart(tip: str) -> list[Chart]:
    found = [
        charts.trend([Point(f"2026-11-01T0{hour}:00:00Z", 0.1 * hour, tip) for hour in range(4)], 0.3, what=tip),
        charts.ranked([Row(0.1, 0.5, tip)], what=tip, against=tip),
        charts.waterfall([Stage("unsold", 3, tip), Stage("useful", 2, tip, is_left=True)], whole=tip, unit="GPU-hours"),
        charts.scaling([Curve(((1, 0.5, tip), (8, 0.4, tip)))]),
        charts.heat([Cell(0, 0, 0.1, tip), Cell(1, 0, None, tip)], charts.thresholds(0.4), label=tip),
        charts.steps([(0, 0.1, 0.2, 0.3), (5, 0.1, 0.2, 0.3)], [(2, tip)], 0.3),
    ]
    assert None not in found
    return [chart for chart in found if chart is not None]


def test_no_chosen_text_is_in_a_spec() -> None:
    """What somebody chose stays out of what is drawn: a NUL in it would abort the process that draws."""
    for chart in every_chart("chosen"):
        assert "chosen" not in repr(chart.spec)
        assert "chosen" not in repr(chart.narrow)


def test_tips_are_text(artist: Artist) -> None:
    """A hostile tip becomes the title of its mark, escaped, with its control characters replaced."""
    for chart in every_chart(HOSTILE):
        svg = artist.draw(chart.spec)
        assert svg is not None
        shown = picture.finish(svg, chart)
        found = Marks(shown)
        assert "script" not in found.tags
        assert found.titles
        assert all("<script>alert(1)</script>" in title for title in found.titles)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", shown)
        assert "//" not in shown.replace("</", "")
        assert " role=" in shown.partition(">")[0]


def test_colours_are_the_page_s(artist: Artist) -> None:
    """Every colour is a variable of the style or none, so that light and dark need no second picture."""
    for chart in every_chart("x"):
        svg = artist.draw(chart.spec)
        assert svg is not None
        colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', picture.finish(svg, chart)))
        assert all(colour == "none" or colour == "transparent" or colour.startswith("var(--") for colour in colours), (
            colours
        )


def test_a_chart_is_drawn_once() -> None:
    """The same spec is answered from what was drawn, a refused spec and a dead process cost one chart."""
    good, bad = every_chart("x")[1].spec, {"mark": "no such mark", "data": {"values": [{"a": 1}]}}
    with Artist() as own:
        first = own.draw(good)
        assert first is not None
        assert own.draw(bad) is None
        # A NUL aborts the process that draws, not this one.
        assert own.draw({**good, "title": "a\x00b"}) is None
        assert own.draw(good) is first
        assert own.draw(every_chart("x")[0].spec) is not None


def test_a_chart_names_no_address() -> None:
    """Data from an address are refused: the process that draws asks nobody for anything."""
    with Artist() as own:
        spec = {"data": {"url": "http://127.0.0.1:9/data.json"}, "mark": "bar", "encoding": {"x": {"field": "a"}}}
        assert own.draw(spec) is None
