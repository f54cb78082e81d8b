"""The report: its JSON's shape, the questions it answers, and how it is told."""

import html.parser
import http.server
import itertools
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfu_sdk import semconv
from mfu_sdk.errors import ConfigurationError, StoreError
from mfu_sdk.provider import report
from mfu_sdk.provider.report import Report, words
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import SpanRow, Store

Make = Callable[..., SpanRow]
PageOf = Callable[[Report], str]
T0 = 1_780_000_200 * 10**9
MINUTE = 60 * 10**9

HOSTILE = "<script>alert(1)</script>\x1b[31m & \"quoted\" 'name'"


@pytest.fixture
def fleet(store: Store, tenant: str, window: Make, span: Make) -> str:
    """One tenant's two workloads over three quarters of an hour, one of them low; returns the tenant."""

    def on(family: str, gpu: str, rank: int, world: int, host: str) -> dict[str, object]:
        return {
            semconv.WORKLOAD_NAME: f"{family}-{gpu}-{world}",
            semconv.WORKLOAD_FAMILY: family,
            semconv.HW_NAME: gpu,
            semconv.HW_ID: f"{gpu}-{host}-{rank}",
            semconv.HOST_NAME: host,
            semconv.DIST_RANK: rank,
            semconv.DIST_WORLD_SIZE: world,
            semconv.RUN_ID: f"run-{world}",
        }

    times = [0.0, 900.0, 1800.0]
    expected = {"mfu__expected__flop": 2e15, "mfu__expected__available__flop": 4e15}
    rows = [
        window(at_s, resource=on("llama", "H100", 0, 1, "n1"), **expected, mfu__model__flop=1.9e15) for at_s in times
    ]
    rows += [
        window(at_s, resource=on("llama", "H100", rank, 2, f"n{rank + 2}"), **expected)
        for at_s, rank in itertools.product(times, (0, 1))
    ]
    rows += [window(0, resource=on("llama", "L4", 0, 1, "n4"), mfu__model__flop=None)]
    rows += [span(semconv.SPAN_INFERENCE, 5, 0.25, resource=on("llama", "L4", 0, 1, "n4"), mfu__token__count=3)]
    rows += [
        span(semconv.SPAN_RUN, 0, 60, resource=on("llama", "H100", 0, 2, "n2"), mfu__count__uncounted='["odd::op"]')
    ]
    store.insert_spans(tenant, rows)
    return tenant


def build(store: Store, tenant: str, span: Range) -> Report:
    return report.build(store, span, tenant)


def test_shape_of_json(store: Store, fleet: str, hour: Range) -> None:
    """The keys are the public ones; what needs an inventory, prices or later work is null."""
    found = json.loads(report.to_json(build(store, fleet, hour)))
    assert set(found) == {
        "window",
        "fleet",
        "nodes",
        "workloads",
        "gpu_types",
        "scaling",
        "inference",
        "questions",
        "causes",
        "economics",
        "economics_missing",
        "hours",
        "fleet_use",
        "causes_left_out",
        "shared_causes",
        "contested",
        "against_fleet",
    }
    assert found["window"] == {"since": "2026-05-28T20:30:00Z", "until": "2026-05-28T21:30:00Z"}
    assert set(found["fleet"]) >= {
        "mfu",
        "owned_mfu",
        "factors",
        "observed_share",
        "model_flop",
        "available_flop",
        "gpu_hours_observed",
        "expected_mfu",
        "trend",
        "previous_mfu",
    }
    assert found["fleet"]["factors"] == {"allocation": None, "runtime": None, "step": found["fleet"]["mfu"]}
    for unknown in ("owned_mfu", "observed_share", "previous_mfu"):
        assert found["fleet"][unknown] is None
    assert found["economics"] is None
    assert set(found["causes_left_out"]) == {"mig_fragmentation", "idle_allocation"}
    # Half of what the larger job could do is missing, and nothing in its spans says why.
    assert [(each["workload"], each["cause"]) for each in found["causes"]] == [("llama-H100-2", "unknown")]
    assert set(found["workloads"][0]) >= {"tenant", "workload", "run_ids", "gpu_type", "world_size", "mfu"}
    assert set(found["nodes"][0]) >= {"host", "mfu", "gpus"}
    assert set(found["questions"]) == {
        "low_workloads",
        "by_gpu_type",
        "by_scale",
        "under_batching_tenants",
        "trend",
        "new_hardware",
    }


def test_numbers(store: Store, fleet: str, hour: Range) -> None:
    """(3 × 1.9 + 6 × 1) of (9 × 4) PFLOP; the L4's window without FLOPs is counted as unknown and in hours."""
    found = build(store, fleet, hour)
    assert found.fleet.mfu == pytest.approx(11.7 / 36)
    assert found.fleet.expected_mfu == pytest.approx(0.5)
    assert (found.fleet.gpus, found.fleet.steps, found.fleet.unknown_steps) == (4, 100, 9)
    assert found.fleet.gpu_hours_observed == pytest.approx(10 * 27 / 3600)
    assert {node.host: node.mfu for node in found.nodes} == {
        "n1": pytest.approx(0.475),
        "n2": 0.25,
        "n3": 0.25,
        "n4": None,
    }
    assert [node.host for node in found.nodes][-2:] == ["n1", "n4"]
    assert {kind.gpu_type: kind.mfu for kind in found.gpu_types} == {"H100": pytest.approx(11.7 / 36), "L4": None}
    by_name = {w.workload: w for w in found.workloads}
    assert by_name["llama-H100-2"].gpus == 2
    assert by_name["llama-H100-2"].uncounted == ("odd::op",)
    assert [(r.workload, r.requests, r.mean_duration_s, r.tokens) for r in found.inference] == [
        ("llama-L4-1", 1, 0.25, 3)
    ]


def test_trend_has_gaps(store: Store, fleet: str, hour: Range) -> None:
    """An hour is told in steps of five minutes; where nothing was seen there is no value."""
    trend = build(store, fleet, hour).fleet.trend
    assert [(point.at, point.mfu is None) for point in trend] == [
        ("2026-05-28T20:30:00Z", False),
        ("2026-05-28T20:35:00Z", True),
        ("2026-05-28T20:40:00Z", True),
        ("2026-05-28T20:45:00Z", False),
        ("2026-05-28T20:50:00Z", True),
        ("2026-05-28T20:55:00Z", True),
        ("2026-05-28T21:00:00Z", False),
    ]
    assert trend[0].mfu == pytest.approx(3.9 / 12)


def test_questions(store: Store, fleet: str, hour: Range) -> None:
    """The workload at half its expectation is low, all the time; the one at 95 % of it is not."""
    questions = build(store, fleet, hour).questions
    [low] = questions.low_workloads.workloads
    assert (low.workload, low.mfu, low.expected_mfu, low.attained, low.low_share) == ("llama-H100-2", 0.25, 0.5, 0.5, 1)
    assert low.shortfall_gpu_hours == pytest.approx(0.5 * 6 * 27 / 3600)
    [curve] = questions.by_scale.curves
    assert (curve.workload_family, curve.gpu_type) == ("llama", "H100")
    assert [(p.world_size, p.mfu, p.parallel_efficiency, p.runs, p.step_time_s) for p in curve.points] == [
        (1, pytest.approx(0.475), 1.0, 1, 3.0),
        (2, 0.25, pytest.approx(0.25 / 0.475), 1, 3.0),
    ]
    [family] = questions.by_gpu_type.families
    assert {on.gpu_type: on.mfu for on in family.gpu_types} == {"H100": pytest.approx(11.7 / 36), "L4": None}


def test_change(store: Store, fleet: str) -> None:
    """The trend is against the equally long time before."""
    found = build(store, fleet, Range(T0 + 10 * MINUTE, T0 + 20 * MINUTE))
    assert found.questions.trend.mfu == pytest.approx(3.9 / 12)
    assert found.questions.trend.previous_mfu == pytest.approx(3.9 / 12)
    assert found.questions.trend.ratio == pytest.approx(1.0)


def test_json_round_trip(store: Store, fleet: str, hour: Range) -> None:
    """What is read from JSON is what was written."""
    found = build(store, fleet, hour)
    assert report.from_json(report.to_json(found)) == found


def test_json_of_another_version(store: Store, fleet: str, hour: Range) -> None:
    """Keys that are not known are passed over, and one that was optional may be missing."""
    asked = json.loads(report.to_json(build(store, fleet, hour)))
    asked["tomorrow"] = 1
    del asked["fleet"]["previous_mfu"]
    del asked["inference"]
    found = report.from_json(json.dumps(asked))
    assert (found.fleet.previous_mfu, found.inference) == (None, ())


def test_json_of_an_older_version(store: Store, fleet: str, hour: Range) -> None:
    """Answers that were lists of rows are read as such, and those that were not given are empty."""
    made = build(store, fleet, hour)
    asked = json.loads(report.to_json(made))
    questions = asked["questions"]
    for name, rows in (("low_workloads", "workloads"), ("by_gpu_type", "families"), ("by_scale", "curves")):
        questions[name] = questions[name][rows]
    questions["trend"] = {name: questions["trend"][name] for name in ("mfu", "previous_mfu", "ratio")}
    del questions["under_batching_tenants"], questions["new_hardware"]
    for row in questions["low_workloads"]:
        del row["buckets"], row["consistent"]
    found = report.from_json(json.dumps(asked)).questions
    assert [w.attained for w in found.low_workloads.workloads] == [0.5]
    assert (found.by_gpu_type.families, found.by_scale.curves) == (
        made.questions.by_gpu_type.families,
        made.questions.by_scale.curves,
    )
    assert (found.trend.mfu, found.trend.crude, found.trend.gpu_types) == (made.questions.trend.mfu, None, ())
    assert (found.under_batching_tenants.tenants, found.new_hardware.arrivals) == ((), ())


def test_text_of_the_questions(store: Store, fleet: str, hour: Range) -> None:
    """Each question has its section, and what nobody sent is said to be missing."""
    text = " ".join(report.render_text(build(store, fleet, hour), 100).split())
    for said in (
        "Low against expectation (1 of 2), most device time short first",
        "By GPU type unknown: no work that names its configuration (mfu.config.intent) ran on two GPU types",
        "With scale, against the smallest size",
        "unknown: steps without tokens (mfu.token.count): weak and strong scaling cannot be told apart, so no fit",
        "Batches no inference was seen",
        "unknown: a test needs 8 buckets with a known MFU",
        "New hardware unknown: no GPU type was first seen a day or more after another",
    ):
        assert said in text, text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"window": 3}', '{"window": {"since": 1, "until": "x"}}'])
def test_no_report(text: str) -> None:
    """What is no report is refused in one line."""
    with pytest.raises(ConfigurationError, match="not a report"):
        report.from_json(text)


# --- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, (-7 * 86_400, 0)),
        ("7d", None, (-7 * 86_400, 0)),
        ("90m", None, (-5400, 0)),
        # An age is reckoned back from `until`, and `until` from now.
        ("2w", "1w", (-21 * 86_400, -7 * 86_400)),
        ("1h", "2h", (-3 * 3600, -2 * 3600)),
        ("15m", "2026-05-28T20:00:00Z", (-45 * 60, -30 * 60)),
        (None, "2026-05-27T20:30:00Z", (-8 * 86_400, -86_400)),
        ("2026-05-28T20:00:00Z", "30s", (-1800, -30)),
        ("2026-05-28T20:00:00", None, (-1800, 0)),
        ("2026-05-28T22:00:00+02:00", None, (-1800, 0)),
        ("2026-05-28", "2026-05-28T20:30:00.5Z", (-20.5 * 3600, 0.5)),
    ],
)
def test_ranges(since: str | None, until: str | None, expected: tuple[float, float]) -> None:
    """An age counts back from the end, to the nanosecond; a time is of ISO 8601, in UTC unless it says otherwise."""
    found = report.parse_range(since, until, T0)
    assert (found.since_unix_ns - T0, found.until_unix_ns - T0) == (expected[0] * 1e9, expected[1] * 1e9)


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [
        ("yesterday", None, r"since='yesterday': must be an age such as 90m, 24h or 7d, or a time such as"),
        ("-7d", None, "since='-7d': must be an age"),
        ("0s", None, r"since=.*: must be before until=.*; give an earlier one"),
        ("2026-05-28T20:00:00Z", "2h", "must be before until"),
        ("1d", "1970-01-01T12:00:00Z", "since='1d': must lie between 1970 and 2223"),
        ("9999-01-01", None, "must lie between 1970 and 2223"),
        ("99999d", None, "must lie between 1970 and 2223"),
        ("1d", "x" * 500, r"until='x{40}': must be an age"),
    ],
)
def test_bad_ranges(since: str, until: str | None, message: str) -> None:
    """A range that is none is refused, with its value and what it may be."""
    with pytest.raises(ConfigurationError, match=message):
        report.parse_range(since, until, T0)


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (None, "unknown"),
        (0.0, "0 FLOP"),
        (999.0, "999 FLOP"),
        (1.2345e6, "1.23 MFLOP"),
        (9.996e9, "10.0 GFLOP"),
        (99.96e12, "100 TFLOP"),
        (999.6e15, "1.00 EFLOP"),
        (2.5e21, "2.50 ZFLOP"),
    ],
)
def test_flop(flops: float | None, text: str) -> None:
    """FLOPs carry three significant digits and a prefix."""
    assert words.flop(flops) == text


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (None, 1, "unknown"),
        (0.2704, 1, "27.0 %"),
        (0.001, 1, "0.1 %"),
        (0.00099, 1, "0.099 %"),
        (0.000999, 1, "0.10 %"),
        (0.00016, 1, "0.016 %"),
        (0.0002, 1, "0.020 %"),
        (1.6e-9, 1, "1.6e-07 %"),
        (0.0, 1, "0.0 %"),
        (0.0, 0, "0 %"),
        (0.4, 0, "40 %"),
        (0.0033, 0, "0.33 %"),
    ],
)
def test_percent(share: float | None, digits: int, text: str) -> None:
    """A share is in percent; what is small is told from zero by two significant digits, and None is never zero."""
    assert words.percent(share, digits) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0473, "0.0473"), (0.05, "0.05"), (-0.0473, "-0.0473"), (0.1, "0.10"), (1234.5, "1,234.50"), (0.0, "0.00")],
)
def test_amount(amount: float, text: str) -> None:
    """What a million tokens cost is often cents, and the half of one is a tenth of it."""
    assert words.figure(amount) == text


def test_other_words() -> None:
    """Hours and durations carry their units."""
    assert (words.hours(1234.5), words.hours(2.25), words.hours(0.5), words.hours(0.01)) == (
        "1,234 h",
        "2.2 h",
        "30.0 min",
        "36.0 s",
    )
    assert (words.seconds(2.0), words.seconds(0.0125), words.seconds(2e-6)) == ("2.00 s", "12.5 ms", "2 µs")
    assert (
        words.name("a\x1b[31m\u202eb\n")
        == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    )
    assert words.name("x" * 70, 10) == "xxxxxxxxx…"


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_text_fits(store: Store, fleet: str, hour: Range, width: int) -> None:
    """No line is wider than asked, and no number in a table is cut short."""
    text = report.render_text(build(store, fleet, hour), width)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"(?<![-\w])\d[\d.,]*( \w*)?…", text)
    # The two figures that matter are on every width.
    for figure in ("47.5 %", "25.0 %", "32.5 %"):
        assert figure in text


def test_text_says(store: Store, fleet: str, hour: Range) -> None:
    """The ratio comes with its numerator and denominator, and what is unknown is said to be."""
    text = report.render_text(build(store, fleet, hour), 100)
    assert "Fleet MFU 32.5 %   2026-05-28 20:30 to 2026-05-28 21:30 UTC\n" in text
    assert re.search(r"model / available +11\.7 PFLOP / 36\.0 PFLOP\n", text)
    assert re.search(r"share of the fleet +unknown \(no inventory of owned devices\)\n", text)
    assert re.search(
        r"left out +9 timed steps, 10\.0 % of them, have no model FLOPs or no peak: in neither sum\n", text
    )
    assert "Not counted in llama-H100-2: odd::op\n" in text
    assert "\x1b" not in text
    assert "\x1b[1m" in report.render_text(build(store, fleet, hour), 100, color=True)


def test_tiny_share_is_not_zero(store: Store, tenant: str, window: Make, hour: Range, page_of: PageOf) -> None:
    """1.6 of 10,000 FLOP are 0.016 %, in the headline, the tables and the page."""
    store.insert_spans(tenant, [window(0, mfu__model__flop=1.6, mfu__available__flop=1e4)])
    found = build(store, tenant, hour)
    # The fleet, its one workload, node and GPU type; on the page also its title, the share useful in a step, and what
    # the pictures of the node and the type say when they are pointed at.
    assert report.render_text(found, 100).count("0.016 %") == 4
    assert Page(page_of(found)).shown.count("0.016 %") == 8


@pytest.mark.parametrize(("unknown", "where"), [(0, ""), (3, " in the steps that are in the sums")])
def test_coverage_is_of_counted_steps(
    store: Store,
    tenant: str,
    window: Make,
    hour: Range,
    unknown: int,
    where: str,
    page_of: PageOf,
) -> None:
    """Where some steps have no FLOPs, what is said of priced bytes is said of the others, and their share is told."""
    store.insert_spans(tenant, [window(0, mfu__count__coverage=0.96, mfu__window__step__unknown=unknown)])
    found = build(store, tenant, hour)
    text = " ".join(report.render_text(found, 100).split())
    page = " ".join(Page(page_of(found)).shown.split())
    assert f"Every workload had at least 96.0 % of its operators' bytes priced{where}." in text
    assert f"at least 96.0 % of every workload's operator bytes were priced{where}." in page
    # 3 of the window's 9 timed steps.
    assert ("3 timed steps, 33.3 % of them, have" in text) == bool(unknown)
    assert ("3 of 9 timed steps, 33.3 % of them, have no model FLOPs" in page) == bool(unknown)


def test_requests_are_exact_or_estimates(
    store: Store, tenant: str, window: Make, span: Make, hour: Range, page_of: PageOf
) -> None:
    """A workload whose windows hold its requests is told exactly, one known by a sample with ≈."""
    whole, sample = ({semconv.WORKLOAD_NAME: name} for name in ("whole", "sample"))
    totals = {"mfu__request__count": 1234, "mfu__request__failed": 7, "mfu__request__time": 617.0}
    store.insert_spans(
        tenant,
        [
            window(0, resource=whole, **totals, mfu__token__count=5678),
            span(semconv.SPAN_INFERENCE, 1, 2.0, resource=whole, mfu__sample__ratio=0.01),
            span(semconv.SPAN_INFERENCE, 1, 2.0, resource=sample, mfu__sample__ratio=0.01, mfu__token__count=3),
        ],
    )
    found = build(store, tenant, hour)
    text = report.render_text(found, 120)
    assert re.search(r"whole +1,234 +500\.0 ms +5,678 +7\n", text)
    assert re.search(r"sample +≈ 100 +2\.00 s +≈ 300 +0\n", text)
    shown = Page(page_of(found)).shown
    assert re.search(r" 1,234 +500\.0 ms +5,678 +7 ", shown)
    assert re.search(r" ≈ 100 +2\.00 s +≈ 300 +0 ", shown)


def test_text_of_nothing(store: Store, hour: Range) -> None:
    """Without steps the report says so, and how a run gets here."""
    text = report.render_text(build(store, "nobody", hour), 80)
    assert "Fleet MFU unknown" in text
    assert "No steps were observed" in text
    assert "Workloads" not in text


def test_hostile_names(store: Store, tenant: str, window: Make, hour: Range, page_of: PageOf) -> None:
    """A name that a tenant chose reaches neither the terminal as a command nor the page as markup."""
    names = dict.fromkeys([semconv.WORKLOAD_NAME, semconv.HOST_NAME, semconv.HW_NAME], HOSTILE)
    store.insert_spans(tenant, [window(0, resource=names, mfu__peak__source=HOSTILE, mfu__peak__dtype="[bold]")])
    found = build(store, tenant, hour)
    assert found.workloads[0].workload == HOSTILE
    assert "\x1b" not in report.render_text(found, 200)
    page = page_of(found)
    assert "<script" not in page
    assert "\x1b" not in page


# --- page ----------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += " " + " ".join(data.split())


def test_page_is_whole(store: Store, fleet: str, hour: Range, page_of: PageOf) -> None:
    """Tags match, there is one heading of the first rank, and the figures are on it."""
    page = Page(page_of(build(store, fleet, hour)))
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert page.tags[0] == ("html", {"lang": "en"})
    for figure in ("32.5 %", "11.7 PFLOP", "36.0 PFLOP", "unknown", "no inventory of owned devices", "odd::op"):
        assert figure in page.shown
    assert not [attributes for tag, attributes in page.tags if tag == "a"]


def test_page_asks_for_nothing(store: Store, fleet: str, hour: Range, page_of: PageOf) -> None:
    """The page is one file: no script, no address, no import."""
    text = page_of(build(store, fleet, hour))
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert not {name for name in attributes if name in ("src", "style") or name.startswith("on")}
    assert "//" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_page_is_read_aloud(store: Store, fleet: str, hour: Range, page_of: PageOf) -> None:
    """Each picture is named or hidden from readers, each table's heads have a scope, each scrolling box a name."""
    page = Page(page_of(build(store, fleet, hour)))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("row", "col", "rowgroup")
        if attributes.get("role") == "region":
            assert attributes.get("aria-label")
            assert attributes.get("tabindex") == "0"


def test_page_of_nothing(store: Store, hour: Range, page_of: PageOf) -> None:
    """Without steps the page says so."""
    page = Page(page_of(build(store, str(uuid.uuid4()), hour)))
    assert page.open == []
    assert "No steps were observed in this time" in page.shown


def test_page_of_what_nobody_named(store: Store, tenant: str, window: Make, hour: Range, page_of: PageOf) -> None:
    """A page whose every optional field is None is drawn all the same."""
    store.insert_spans(tenant, [window(0, mfu__available__flop=None)])
    found = build(store, tenant, hour)
    bare = replace(found.workloads[0], workload=None, gpu_type=None, world_size=None, gpu_hours=None, steps=None)
    page = Page(page_of(replace(found, workloads=(bare,))))
    assert page.open == []


# --- sources -------------------------------------------------------------------------------------------------------


def test_no_such_directory(tmp_path: Path) -> None:
    """A directory that is not there is refused, and not made."""
    with pytest.raises(ConfigurationError, match="no such data directory"):
        report.from_data_dir(tmp_path / "none", now_unix_ns=T0)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", [(), ("notes.txt",), ("clickhouse/",), ("owner.lock",)])
def test_directory_that_is_no_store(tmp_path: Path, content: tuple[str, ...]) -> None:
    """A directory that no provider has kept its store in is refused, and stays as it is."""
    for name in content:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("")
    message = (
        rf"^{re.escape(str(tmp_path))}: not a store of `mfu serve`; name the one that `mfu serve --data` was given$"
    )
    with pytest.raises(ConfigurationError, match=message):
        report.from_data_dir(tmp_path, now_unix_ns=T0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(name.rstrip("/") for name in content)


def test_directory_that_is_served(store: Store) -> None:
    """A directory that a server holds is refused, with the way to ask it."""
    with pytest.raises(StoreError, match="ask it with `mfu report --url`"):
        report.from_data_dir(store.name, now_unix_ns=T0)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "must be http:// or https://"),
        ("localhost:8080", "must be http:// or https://"),
        ("http://127.0.0.1:9", r"did not answer \(.*refused.*\); is `mfu serve` running there\?"),
    ],
)
def test_bad_address(url: str, message: str) -> None:
    """An address that is none, or where nobody answers, is refused in one line."""
    with pytest.raises(ConfigurationError, match=message):
        report.from_url(url)


def test_token_goes_nowhere_else() -> None:
    """A redirect is not followed: the token would go along."""
    asked: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with pytest.raises(ConfigurationError, match="answered 302"):
                report.from_url(f"http://127.0.0.1:{server.server_port}", "secret")
        finally:
            server.shutdown()
            serving.join(20)
    assert asked == ["/api/report?"]
