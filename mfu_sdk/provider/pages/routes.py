"""The addresses of the pages, and who sees what on them: every reading is of the reader's own scope."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from mfu_sdk.provider import report, rollup
from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.findings import STATES, Kept
from mfu_sdk.provider.pages import charts, fleet, nodes, runs, use
from mfu_sdk.provider.pages.engine import ASSETS, Engine, asset, told
from mfu_sdk.provider.pages.money import waterfall_chart
from mfu_sdk.provider.pages.reports import Build, Reports
from mfu_sdk.provider.pages.view import RANGES, Listing, View, listing, read
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.report.model import Node, Workload
from mfu_sdk.provider.report.unexplained import parted
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import Store

KeptOf = Callable[[Range, str | None], tuple[Kept, ...]]
"""The findings of a range's days, of one tenant or of all, and what was decided about them."""

Answer = Callable[[Request], Response]
Answering = Callable[[Answer], Callable[[Request], Awaitable[Response]]]

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing from elsewhere, and no script in the page itself."""

WORKLOAD_ORDERS: Final = {
    "": "most device time first",
    "attained": "furthest below expectation first",
    "mfu": "lowest MFU first",
    "name": "by name",
}
CAUSE_ORDERS: Final = {"": "latest day first", "loss": "largest loss first", "state": "open ones first"}
NODE_ORDERS: Final = {"": "lowest MFU first", "time": "most device time first", "name": "by name"}


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: `name`, and `tenant`, the only one whose rows may be read, or None for every tenant's.

    `sees_books`: the provider's own prices and inventory are theirs to see.
    """

    name: str
    tenant: str | None
    is_operator: bool
    sees_books: bool


def routes(
    store: Store,
    build: Build,
    artist: Artist,
    kept: KeptOf,
    reader: Callable[[Request], Reader],
    answering: Answering,
    now_unix_ns: Callable[[], int],
) -> list[Route]:
    """The pages of what `build` makes of `store`, and of the findings `kept`.

    `reader` raises for whom nobody knows or who asks for another; `answering` makes that an answer.
    """
    pages = _Pages(store, Reports(build, now_unix_ns), kept, Engine(artist), now_unix_ns)

    def page(show: Callable[[_Asked], Response]) -> Callable[[Request], Awaitable[Response]]:
        return answering(lambda request: show(pages.asked(request, reader(request))))

    return [
        Route("/", page(pages.fleet)),
        Route("/workloads", page(pages.workloads)),
        Route("/workload/{tenant}/{workload:path}", page(pages.workload)),
        Route("/nodes", page(pages.nodes)),
        Route("/nodes/{host:path}", page(pages.node)),
        Route("/runs/{run_id:path}", page(pages.run)),
        Route("/causes", page(pages.causes)),
        Route("/money", page(pages.money)),
        *(Route(f"/assets/{name}", answering(_asset(name, kind))) for name, kind in ASSETS.items()),
    ]


@dataclass(frozen=True, slots=True)
class _Asked:
    reader: Reader
    view: View
    span: Range
    parts: dict[str, str]
    path: str


class _Pages:
    def __init__(
        self, store: Store, reports: Reports, kept: KeptOf, engine: Engine, now_unix_ns: Callable[[], int]
    ) -> None:
        self._store = store
        self._reports = reports
        self._kept = kept
        self._engine = engine
        self._now_unix_ns = now_unix_ns

    def asked(self, request: Request, reader: Reader) -> _Asked:
        view = read(request.query_params)
        if not reader.is_operator:
            # A tenant's links say nothing of whom they are for: whoever follows one sees their own.
            view = replace(view, tenant=None)
        span = report.parse_range(view.since, view.until, self._now_unix_ns())
        # As it was asked for: a name that holds "/../" is one step of a path only while it is quoted.
        path = request.scope["raw_path"].decode("ascii", "replace")
        return _Asked(reader, view, span, dict(request.path_params), path)

    def fleet(self, asked: _Asked) -> Response:
        found = self._report(asked)
        return _html(fleet.page(self._engine, found, asked.view, **self._around(asked)))

    def workloads(self, asked: _Asked) -> Response:
        found = self._report(asked)
        rows: Listing[Workload] = listing(
            sorted(found.workloads, key=_WORKLOAD_KEYS.get(asked.view.order, _as_is)),
            asked.view,
            lambda w: f"{w.workload or ''} {w.tenant} {w.gpu_type or ''}",
        )
        return self._show(
            "workloads", asked, report=found, rows=rows, top=fleet.scale_end(found), orders=WORKLOAD_ORDERS
        )

    def workload(self, asked: _Asked) -> Response:
        tenant, name = asked.parts["tenant"], asked.parts["workload"]
        if asked.reader.tenant not in (None, tenant):
            return self._nothing(asked, "workload")
        found = self._report(asked, tenant)
        jobs = [w for w in found.workloads if w.workload == name]
        if not jobs:
            return self._nothing(asked, "workload")
        bucket_s = report.bucket_seconds(asked.span)
        moments = [
            moment
            for moment in rollup.moments(self._store, asked.span, tenant, bucket_s)
            if moment.job.workload == name and asked.view.gpu_type in (None, moment.job.gpu_type)
        ]
        low = [row for row in found.questions.low_workloads.workloads if row.workload == name]
        runs_of = sorted({run_id for w in jobs for run_id in w.run_ids})
        causes, unexplained = parted([c for c in found.causes if c.workload == name])
        if not causes and unexplained is not None:
            causes, unexplained = unexplained.rows, None
        against = found.against_fleet
        if against is not None:
            rows_of = tuple(row for row in against.rows if name in row.workloads and row.fleet_mfu)
            against = replace(against, rows=rows_of, missing=())
        return self._show(
            "workload",
            asked,
            tenant=tenant,
            name=name,
            jobs=jobs,
            low=low,
            runs=runs_of,
            causes=causes,
            against=against,
            unexplained=unexplained,
            top=charts.top([value for w in jobs for value in (w.mfu, w.expected_mfu)]),
            trend=fleet.workload_trend(moments, bucket_s, jobs),
            curves=[curve for curve in found.scaling if curve.workload_family in {w.workload_family for w in jobs}],
            peaks=fleet.peaks(jobs),
        )

    def nodes(self, asked: _Asked) -> Response:
        found = self._report(asked)
        # A state that the page shows can be searched for in both of its lists.
        states = {} if found.fleet_use is None else {node.host: node.state for node in found.fleet_use.nodes}
        rows: Listing[Node] = listing(
            sorted(found.nodes, key=_NODE_KEYS.get(asked.view.order, _as_is)),
            asked.view,
            lambda n: f"{n.host or ''} {' '.join(n.gpu_types)} {states.get(n.host or '', '')}",
        )
        cells = nodes.groups(found.nodes)
        end = fleet.node_end(found)
        return self._show(
            "nodes",
            asked,
            report=found,
            rows=rows,
            top=fleet.scale_end(found),
            cells=cells,
            heat=nodes.heat_map(cells, end),
            heat_end=end,
            orders=NODE_ORDERS,
            health=None if found.fleet_use is None else use.nodes(found.fleet_use, asked.view.find),
            is_watched=use.is_watched(found.fleet_use),
            # Of the others there is no page: nothing ran there that was told.
            hosts={node.host for node in found.nodes},
        )

    def node(self, asked: _Asked) -> Response:
        tenant = self._tenant(asked)
        usages = rollup.usages(self._store, asked.span, tenant)
        found = nodes.detail(self._store, asked.span, tenant, asked.parts["host"], usages)
        if found is None:
            return self._nothing(asked, "node")
        whole = self._report(asked).fleet_use if asked.reader.sees_books else None
        return self._show("node", asked, node=found, health=use.node(whole, found.host))

    def run(self, asked: _Asked) -> Response:
        run_id, tenant = asked.parts["run_id"], self._tenant(asked)
        if tenant is None:
            whose = runs.tenants(self._store, asked.span, None, run_id)
            if len(whose) > 1:
                return self._show("which", asked, run_id=run_id, owners=whose)
            tenant = whose[0] if whose else ""
        found = runs.read(self._store, asked.span, tenant, run_id)
        if found is None:
            return self._nothing(asked, "run")
        rows = listing(
            sorted(found.ranks, key=lambda rank: (rank.sums.mfu is None, rank.sums.mfu or 0.0)),
            asked.view,
            lambda rank: f"{rank.rank} {rank.host or ''} {rank.device}",
        )
        top = charts.top([value for rank in found.ranks for value in (rank.sums.mfu, rank.sums.expected_mfu)])
        return self._show("run", asked, run=found, rows=rows, top=top)

    def causes(self, asked: _Asked) -> Response:
        found = self._report(asked)
        kept = [
            one
            for one in self._kept(asked.span, self._tenant(asked))
            if asked.view.gpu_type in (None, one.finding.gpu_type)
        ]
        rows = listing(
            sorted(kept, key=_KEPT_KEYS.get(asked.view.order, _as_is)),
            asked.view,
            lambda k: (
                f"{k.finding.workload or ''} {k.finding.tenant} {told(k.finding.cause)} {k.state} {k.finding.day}"
            ),
        )
        return self._show("causes", asked, report=found, rows=rows, orders=CAUSE_ORDERS)

    def money(self, asked: _Asked) -> Response:
        found = self._report(asked)
        money = found.economics
        picture = waterfall_chart(found.hours, None if money is None else money.currency)
        return self._show("money", asked, report=found, waterfall=picture)

    def _report(self, asked: _Asked, tenant: str | None = None) -> Report:
        whose = tenant or self._tenant(asked)
        # Money is of the whole fleet; part of it would be told as if it were all.
        is_whole = asked.reader.sees_books and whose == asked.reader.tenant
        return self._reports.get(asked.view, asked.span, whose, is_whole)

    def _tenant(self, asked: _Asked) -> str | None:
        return asked.view.tenant if asked.reader.is_operator else asked.reader.tenant

    def _show(self, template: str, asked: _Asked, status: int = 200, **context: Any) -> Response:
        shown = self._engine.render(f"{template}.html.j2", view=asked.view, **self._around(asked), **context)
        return _html(shown, status)

    def _nothing(self, asked: _Asked, what: str) -> Response:
        # Another tenant's is told like what is not there: an answer that differs would say that it is.
        return self._show("nothing", asked, 404, what=what)

    def _around(self, asked: _Asked) -> dict[str, Any]:
        rows = self._store.read("choices", **rollup.scope(asked.span, asked.reader.tenant))
        return {
            "reader": asked.reader,
            "path": asked.path,
            "ranges": RANGES,
            "tenants": sorted({row["tenant"] for row in rows}),
            # What no keyboard can type is no choice; its own row still links to it.
            "gpu_types": sorted({row["gpu_type"] for row in rows if row["gpu_type"].isprintable() and row["gpu_type"]}),
            "since": report.iso(asked.span.since_unix_ns),
            "until": report.iso(asked.span.until_unix_ns),
        }


def _as_is(_: object) -> float:
    return 0.0


def _attained(w: Workload) -> float:
    attained = rollup.ratio(w.mfu, w.expected_mfu)
    return float("inf") if attained is None else attained


_WORKLOAD_KEYS: Final[dict[str, Callable[[Workload], Any]]] = {
    "attained": _attained,
    "mfu": lambda w: (w.mfu is None, w.mfu or 0.0),
    "name": lambda w: (w.workload or "", w.tenant),
}
_KEPT_KEYS: Final[dict[str, Callable[[Kept], Any]]] = {
    # Of a day those first that have a name.
    "": lambda k: (-date.fromisoformat(k.finding.day).toordinal(), k.finding.cause == "unknown"),
    "loss": lambda k: -k.finding.loss_share,
    "state": lambda k: (STATES.index(k.state) != 0, -k.finding.loss_share),
}
_NODE_KEYS: Final[dict[str, Callable[[Node], Any]]] = {"time": lambda n: -(n.gpu_hours or 0.0), "name": nodes.by_name}


def _html(text: str, status: int = 200) -> Response:
    return HTMLResponse(text, status, headers=HEADERS)


def _asset(name: str, kind: str) -> Answer:
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return lambda _: Response(asset(name), media_type=kind, headers=headers)
