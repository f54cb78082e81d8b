"""The pages of a real daemon: what is on them, what a tenant sees of another, and what a hostile name does."""

import html.parser
import itertools
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from mfu_sdk import semconv
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider import pages, report
from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.pages.reports import LEAST_FRESH_NS, Reports
from mfu_sdk.provider.pages.view import PER_PAGE, View, listing, read
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.serve import Server

from .fed import GPU, Fed, resource, serving, span, window

T0 = 1_780_000_200 * 10**9
FREE = ("127.0.0.1", 0)
HOSTILE = "</title><script>alert(1)</script>\x1b[31m & \"quoted\" 'name' \u202egnp/../?#%00"
SECRET = "globex-secret"

VOID = {"meta", "link", "br", "input", "hr", "img"}


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, the headings' ranks in order, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += " " + " ".join(data.split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def texts(place: semconv.Place) -> list[str]:
    """The names of all attributes with texts at `place`, but for who it is."""
    mine = (semconv.TENANT_ID, semconv.RUN_ID, semconv.SERVICE_NAME)
    return [a.name for a in semconv.ATTRIBUTES.values() if a.type == "string" and place in a.on and a.name not in mine]


def quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    """acme and globex on one node, a run that drifted, a workload with a hostile name, and sixty nodes of acme's."""
    home = tmp_path_factory.mktemp("pages")
    (home / "tokens").write_text(
        "tenants: {acme: [{token: a}], globex: [{token: g}]}\noperators: {ops: [{token: o}]}\n"
        "providers: {dcgm: [{token: p}]}"
    )
    server = Server(home / "data", http=FREE, web=FREE, tokens=home / "tokens", now_unix_ns=lambda: T0)
    for fed in serving(server):
        gpt, hostile = resource("gpt"), resource(HOSTILE, host__name=HOSTILE, hw__name=HOSTILE)
        fed.send([window(n, of, T0) for n, of in itertools.product(range(1, 5), (gpt, hostile))], "a")
        everything = resource(HOSTILE, **{name.replace(".", "__"): HOSTILE for name in texts("resource")})
        names: dict[str, semconv.Place] = {
            semconv.SPAN_WINDOW: "window", semconv.SPAN_STEP: "step", semconv.SPAN_RUN: "run",
            semconv.SPAN_DRIFT: "drift", semconv.SPAN_CALIBRATION: "calibration",
        }  # fmt: skip
        for name, place in names.items():
            said = dict.fromkeys(texts(place), HOSTILE)
            told = {semconv.AVAILABLE_FLOP: 30e12, semconv.MODEL_FLOP: 1e12, semconv.STEP_TIME: 30.0, **said}
            fed.send([span(name, everything, T0 - 900 * 10**9, 30.0, told)], "a")
        fed.send([window(1, resource("wide", host__name=f"wide-{n}", hw__id=f"w{n}"), T0) for n in range(60)], "a")
        drift = {
            semconv.DRIFT_KIND: "drop",
            semconv.DRIFT_CHANGE: -0.3,
            semconv.DRIFT_ONSET_STEP: 930,
            semconv.DRIFT_FOUND_STEP: 940,
            semconv.DRIFT_CAUSE: "configuration_drift",
            semconv.DRIFT_EVIDENCE: ["nccl: 1 → 2"],
        }
        peak = {semconv.PEAK_FLOP_RATE: 1e12, semconv.PEAK_DTYPE: "bfloat16", semconv.PEAK_SOURCE: "calibrated"}
        run = {semconv.RUN_STEP_COUNT: 120, semconv.ERROR_TYPE: "OutOfMemoryError", semconv.RUN_OVERHEAD: 0.5}
        told = ((semconv.SPAN_DRIFT, drift), (semconv.SPAN_CALIBRATION, peak), (semconv.SPAN_RUN, run))
        fed.send([span(name, gpt, T0 - 1200 * 10**9, 600.0, found) for name, found in told], "a")
        # The same run id as acme's: an id is whatever a client says.
        mine = resource(SECRET, mfu__run__id="run-gpt", hw__id=f"GPU-{SECRET}")
        fed.send([window(n, mine, T0, mfu=0.1) for n in (1, 2)], "g")
        labels = {"UUID": HOSTILE, "Hostname": HOSTILE, "modelName": HOSTILE}
        fed.send_gauge("DCGM_FI_DEV_XID_ERRORS", labels, 79, T0 - 600 * 10**9, "p")
        fed.send([window(1, resource(f"{SECRET}-alone", host__name=f"{SECRET}-node"), T0)], "g")
        yield fed


PATHS = (
    "/", "/workloads", "/nodes", "/causes", "/money", "/nodes/node-1", "/workload/acme/gpt", "/runs/run-gpt",
    f"/workload/acme/{quoted(HOSTILE)}", f"/nodes/{quoted(HOSTILE)}", f"/runs/{quoted('run-' + HOSTILE)}",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_every_page_is_whole(fed: Fed, path: str) -> None:
    """Tags match, headings go down by one, tables have heads, boxes have names; nothing hostile is markup.

    And nothing of globex's is on any page of acme's, not even on that of the node which both use.
    """
    status, headers, body = fed.get(f"{path}?since=1h", "a")
    assert SECRET not in body
    assert "globex" not in body
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = Page(body)
    assert page.open == []
    ranks = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert ranks.count(1) == 1
    assert ranks[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(ranks))
    assert [tag for tag, _ in page.tags].count("main") == 1
    assert all(th.get("scope") in ("row", "col", "rowgroup") for th in page.all("th"))
    assert all(svg.get("aria-hidden") == "true" or svg.get("aria-label") for svg in page.all("svg"))
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert all(region.get("aria-label") and region.get("tabindex") == "0" for region in regions)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.all("script")) == 1
    assert "\x1b" not in body
    assert "\u202e" not in body
    for _, attributes in page.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action"):
            assert not re.match(r"[a-z]+:|//", attributes.get(name) or "")


@pytest.mark.parametrize("path", ["/workloads", "/nodes", "/causes", "/runs/run-gpt"])
def test_a_search_finds_one_s_own(fed: Fed, path: str) -> None:
    """A search for another tenant, or for what it ran, finds nothing of it."""
    for sought in ("globex", SECRET):
        body = fed.get(f"{path}?since=1h&find={sought}", "a")[2]
        assert sought not in body.replace(f'value="{sought}"', "")


@pytest.mark.parametrize(
    "path",
    ["/workload/globex/{}", "/workload/acme/{}", "/nodes/{}-node", "/runs/run-{}-alone"],
)
def test_another_s_is_told_like_nothing(fed: Fed, path: str) -> None:
    """What is another tenant's is answered as what is not there, to the letter."""
    real, none = (fed.get(path.format(name) + "?since=1h", "a") for name in (SECRET, "nothing-here"))
    assert (real[0], none[0]) == (404, 404)
    assert real[2].replace(SECRET, "nothing-here") == none[2]
    assert fed.get(path.format(SECRET) + "?since=1h&tenant=globex", "a")[0] == 403


@pytest.mark.parametrize("path", ["/", "/workloads", "/nodes", "/causes", "/money", "/nodes/node-1", "/runs/run-gpt"])
def test_no_token_no_page(fed: Fed, path: str) -> None:
    """Without a token there is no page, and with one that is not known neither."""
    for token in (None, "x"):
        status, _, body = fed.get(path, token)
        assert status == 401
        assert "gpt" not in body


def test_a_node_is_whole_for_an_operator(fed: Fed) -> None:
    """An operator sees both tenants on it, summed; a tenant its own part, and is told that it is one."""
    whole, part = (Page(fed.get("/nodes/node-1?since=1h", token)[2]).shown for token in ("o", "a"))
    # acme: four windows of 7.5 of 30 TFLOP; globex: two of 3 of 30.
    assert "20.0 %" in whole
    assert SECRET in whole
    assert "25.0 %" in part
    assert "Only what acme ran on it." in part


def test_one_run_id_of_two_tenants(fed: Fed) -> None:
    """An operator is asked whose run is meant; a tenant has one."""
    asked = Page(fed.get("/runs/run-gpt?since=1h", "o")[2])
    assert "More than one tenant" in asked.shown
    links = [a["href"] for a in asked.all("a") if "run-gpt" in (a["href"] or "")]
    assert links == ["/runs/run-gpt?since=1h&tenant=acme", "/runs/run-gpt?since=1h&tenant=globex"]
    assert "10.0 %" in Page(fed.get(links[1] or "", "o")[2]).shown


def test_what_a_run_page_says(fed: Fed) -> None:
    """Its MFU, its drift with evidence, its peak, how it ended, and where its time went."""
    shown = Page(fed.get("/runs/run-gpt?since=1h", "a")[2]).shown
    for said in ("25.0 %", "-30.0 %", "configuration drift", "nccl: 1 → 2", "1.00 TFLOP/s", "OutOfMemoryError"):
        assert said in shown
    # 6 s of 30 s; the other parts were not told.
    assert re.search(r"waiting for data +20\.0 %", shown)
    assert re.search(r"exposed communication +unknown", shown)


def test_every_link_leads_somewhere(fed: Fed) -> None:
    """From the fleet's page down every level, and sideways: each link of each page answers, but for what ended."""
    seen: set[str] = set()
    todo = ["/?since=1h"]
    while todo:
        path = todo.pop()
        status, _, body = fed.get(path, "a")
        assert status == 200, path
        for a in Page(body).all("a"):
            href = a["href"] or ""
            # One of the sixty nodes stands for all of them, and a page under one filter for it under others.
            kind = re.sub(r"wide-\d+", "", href.partition("?")[0])
            if href.startswith("/") and kind not in seen and "order=" not in href:
                seen.add(kind)
                todo.append(href)
    kinds = {path.split("/")[1] for path in seen}
    assert kinds >= {"", "workloads", "workload", "nodes", "runs", "causes", "money"}


def test_filters_are_kept_in_links(fed: Fed) -> None:
    """A GPU type that is chosen stays chosen on the way down, and the choices are those of the range."""
    body = fed.get("/?since=1h&gpu_type=" + quoted("NVIDIA H100 80GB HBM3"), "o")[2]
    page = Page(body)
    assert "alert(1)" not in body.partition("<main")[2]
    inner = [a["href"] or "" for a in page.all("a") if (a["href"] or "").startswith("/")]
    assert inner
    assert all("gpu_type=NVIDIA+H100" in href and "since=1h" in href for href in inner)
    chosen = [option for option in page.all("option") if "selected" in option]
    assert [option["value"] for option in chosen] == ["1h", "NVIDIA H100 80GB HBM3"]
    assert {option["value"] for option in page.all("option")} >= {"acme", "globex", "24h", ""}
    assert "globex" not in {option["value"] for option in Page(fed.get("/?since=1h", "a")[2]).all("option")}


def test_lists_are_paged_and_searched(fed: Fed) -> None:
    """62 nodes are two pages of 50 and 12; a search is over all of them; a page beyond the last is the last."""
    first, last, beyond = (Page(fed.get(f"/nodes?since=1h&order=name&page={page}", "a")[2]) for page in (1, 2, 9))
    assert "1 to 50 of 62 nodes" in first.shown
    assert "51 to 62 of 62 nodes" in last.shown
    assert last.shown == beyond.shown
    assert [a["rel"] for a in first.all("a") if "rel" in a] == ["next", "next"]
    found = Page(fed.get("/nodes?since=1h&find=WIDE-7", "a")[2])
    assert "1 to 1 of 1 nodes, of 62 in all" in found.shown
    assert "None of 62 nodes match." in Page(fed.get("/nodes?since=1h&find=zzz", "a")[2]).shown
    status, _, body = fed.get("/nodes?page=-1", "a")
    assert (status, body) == (400, "page='-1': must be a number from 1 to 1,000,000; follow the page's own links\n")


def test_assets_are_the_page_s_own(fed: Fed) -> None:
    """Style, script and icon come from where the page does, may be kept for ever, and need no token."""
    page = Page(fed.get("/?since=1h", "a")[2])
    wanted = [link["href"] or "" for link in page.all("link")] + [script["src"] or "" for script in page.all("script")]
    assert len(wanted) == 3
    for address in wanted:
        status, headers, body = fed.get(address)
        assert (status, headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
        assert body


def test_a_finding_is_decided_on_its_page(fed: Fed) -> None:
    """What an operator decides shows where the finding does; a tenant may not, and sees no form for it."""
    findings = json.loads(fed.get("/api/findings?since=1h", "o")[2])["findings"]
    mine = next(each for each in findings if each["tenant"] == "acme" and each["workload"] == "gpt")
    body = fed.get("/causes?since=1h", "o")[2]
    assert f'data-finding="{mine["id"]}"' in body
    assert "data-finding" not in fed.get("/causes?since=1h", "a")[2]
    path = f"/api/findings/{mine['id']}/state"
    assert fed.post(path, {"state": "muted", "note": "known"}, "a") == 403
    assert fed.post(path, {"state": "muted", "note": "known"}, "o") == 200
    shown = Page(fed.get("/causes?since=1h&find=muted", "o")[2]).shown
    assert "muted by ops: known" in " ".join(shown.split())


# --- allocated, busy, useful ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nodes", f"/nodes/{quoted(HOSTILE)}"], ids=["list", "node"])
def test_how_nodes_are_is_an_operator_s_to_see(fed: Fed, path: str) -> None:
    """Of the whole fleet, for operators: state and advice, names only as text; a tenant or a part is told of none."""
    status, _, body = fed.get(f"{path}?since=1h", "o")
    page = Page(body)
    assert (status, page.open, len(page.all("script"))) == (200, [], 1)
    assert "\x1b" not in body
    assert "\u202e" not in body
    assert re.search(r"unhealthy .*Xid 79 \(GPU has fallen off the bus\): drain and reboot the node", page.shown)
    assert "</title><script>alert(1)</script>" in page.shown
    for token, more in (("a", ""), ("o", "&tenant=acme"), ("o", f"&gpu_type={quoted(GPU)}")):
        shown = Page(fed.get(f"{path}?since=1h{more}", token)[2]).shown
        assert not re.search("Xid|unhealthy|DCGM|dcgm", shown)


def test_health_is_searched_and_linked(fed: Fed) -> None:
    """The state is a word to search for; only the node with an exporter and steps is unhealthy, and is a link."""
    page = Page(fed.get("/nodes?since=1h&find=unhealthy", "o")[2])
    assert "1 unhealthy, 62 unknown; unhealthy ones first. 1 match." in " ".join(page.shown.split())
    assert "1 to 1 of 1 nodes, of 63 in all" in page.shown
    assert f"/nodes/{quoted(HOSTILE)}?since=1h" in [a["href"] for a in page.all("a")]


def with_use(watched_gpu_hours: float, gpus: int = 8) -> Report:
    """A report of one node of `gpus` devices with steps, no inventory, and exporters that told of some hours."""
    told = json.loads(report.to_json(large(1, 1)))
    told["fleet"]["gpus"] = gpus
    unknown = {"value": None, "gpu_hours": None, "owned_share": None}
    names = ("allocation", "gpu_utilization", "engine_activity", "tensor_activity", "mfu", "expected_mfu", "owned_mfu")
    node = {
        "host": "n",
        "gpus": 8,
        "estimated_gpu_hours": 0.0,
        "watched_gpu_hours": watched_gpu_hours,
        "state": "watch",
    }
    told["fleet_use"] = {
        **dict.fromkeys((*names, "estimated_mfu"), unknown), "over": "all", "estimate_error": "<b>r = 0.78",
        "nodes": [node],
    }  # fmt: skip
    if watched_gpu_hours:
        told["fleet_use"]["gpu_utilization"] = {"value": 1.0, "gpu_hours": watched_gpu_hours, "owned_share": None}
        told["fleet_use"]["estimated_mfu"] = {"value": 0.05, "gpu_hours": 6.0, "owned_share": None}
    return report.from_json(json.dumps(told))


def test_what_nobody_sends_is_asked_for(artist: Artist) -> None:
    """Without exporters the card is as it was, and says what to send; who may not see the fleet is not asked."""
    for found, asked in ((large(1, 1), False), (with_use(0.0), True)):
        shown = Page(pages.render_html(found, artist)).shown
        assert ("providers:" in shown) == asked
        assert re.search(r" Allocated .* In steps .* MFU 25\.0 % .* Useful ", " ".join(shown.split()))
        assert "GPU utilization" not in shown


def test_a_fleet_without_the_sdk_has_a_card(artist: Artist) -> None:
    """Exporters alone: busy in full, of all hours told of as nobody knows whose they are, and an estimate by itself."""
    shown = " ".join(Page(pages.render_html(with_use(7.0, gpus=0), artist)).shown.split())
    assert "No steps were observed" in shown
    assert (
        "GPU utilization 100.0 % any kernel running, of 7.0 GPU-hours that DCGM told of Tensor activity unknown"
        in shown
    )
    assert "≈ 5.0 % an estimate, in none of the MFUs above, over 6.0 GPU-hours without steps; <b>r = 0.78" in shown


# --- large fleets ---------------------------------------------------------------------------------------------------


def large(nodes: int, workloads: int) -> Report:
    """A report of `nodes` nodes of eight GPUs, as another provider's JSON would bring it."""
    known = {"mfu": 0.25, "expected_mfu": 0.5, "model_flop": 1e18, "available_flop": 4e18, "gpus": 8, "gpu_hours": 24.0}
    low = {"mfu": 0.25, "expected_mfu": 0.5, "attained": 0.5, "shortfall_gpu_hours": 12.0, "low_share": 1.0}
    jobs = [
        {"tenant": f"t{n % 40}", "workload": f"workload-{n}", "gpu_type": GPU, "world_size": 8}
        for n in range(workloads)
    ]
    return report.from_json(
        json.dumps(
            {
                "window": {"since": "2026-11-26T00:00:00Z", "until": "2026-11-27T00:00:00Z"},
                "fleet": {**known, "gpus": 8 * nodes, "factors": {}, "trend": []},
                "nodes": [{**known, "host": f"node-{n}.region.example", "gpu_types": [GPU]} for n in range(nodes)],
                "workloads": [{**job, **known, "run_ids": [f"run-{n}"]} for n, job in enumerate(jobs)],
                "gpu_types": [{**known, "gpu_type": f"GPU {n}"} for n in range(60)],
                "questions": {"low_workloads": {"workloads": [{**job, **low} for job in jobs]}, "trend": {}},
                "inference": [
                    {"tenant": "t", "workload": f"w{n}", "requests": 1.0, "sampled": False} for n in range(600)
                ],
                "causes": [],
            }
        )
    )


def test_ten_thousand_gpus_are_a_small_page(artist: Artist) -> None:
    """1,250 nodes and 600 workloads: well under a megabyte, a few hundred cells, and how many are left out."""
    text = pages.render_html(large(1250, 600), artist)
    page = Page(text)
    assert len(text.encode()) < 200_000
    assert len(page.tags) < 3000
    assert "1,250 nodes in the order of their names, 6 to a cell" in " ".join(page.shown.split())
    assert "10 of 600" in page.shown


# --- views ---------------------------------------------------------------------------------------------------------


def test_a_link_holds_what_differs() -> None:
    """Only what is not the usual is in an address; a search stays on its own page."""
    view = View(since="24h", gpu_type="a b", find="x", page=3)
    assert view.link("/nodes") == "/nodes?since=24h&gpu_type=a+b"
    assert view.link(page=4, find="x") == "?since=24h&gpu_type=a+b&find=x&page=4"
    assert View().link("/") == "/"
    assert View().path("nodes", "a/b ?#é") == "/nodes/a%2Fb%20%3F%23%C3%A9"
    assert read(dict(urllib.parse.parse_qsl("since=1h&tenant=&page=2&other=1"))) == View(since="1h", page=2)


@pytest.mark.parametrize("page", ["0", "-1", "x", "1.5", "²", "9" * 30])
def test_a_page_is_a_number(page: str) -> None:
    """What is none, or too large, is refused with the rule."""
    with pytest.raises(ConfigurationError, match=r"must be a number from 1 to 1,000,000"):
        read({"page": page})


@pytest.mark.parametrize(
    ("count", "page", "pages", "rows"), [(0, 1, 1, 0), (50, 1, 1, 50), (51, 2, 2, 1), (51, 7, 2, 1)]
)
def test_every_row_is_on_one_page(count: int, page: int, pages: int, rows: int) -> None:
    """Pages of fifty; the last holds the rest."""
    found = listing(range(count), View(page=page), str)
    assert (found.pages, len(found.rows)) == (pages, rows)
    assert found.first == (min(page, pages) - 1) * PER_PAGE + 1


def test_a_report_is_made_once_for_a_while() -> None:
    """Whoever asks for the same within the time gets the same; another tenant, or later, another."""
    now, built = [0], []
    span = Range(0, 1)

    def build(*asked: Any) -> Any:
        built.append(asked)
        return object()

    reports = Reports(build, lambda: now[0])
    first = reports.get(View(), span, "a", False)
    assert reports.get(View(page=2), span, "a", False) is first
    assert reports.get(View(), span, "b", False) is not first
    assert reports.get(View(), span, "a", True) is not first
    now[0] = LEAST_FRESH_NS + 1
    assert reports.get(View(), span, "a", False) is not first
    assert [asked[1] for asked in built] == ["a", "b", "a", "a"]
