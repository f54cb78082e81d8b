"""What a dashboard is made of, and the form in which Grafana reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

WIDTH: Final = 24
"""Columns of Grafana's grid."""

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """One query in the language of its source; `legend` names its series where the query does not."""

    text: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what it shows, in which unit of Grafana, `width` of 24 columns wide."""

    title: str
    kind: Literal["timeseries", "stat", "table"]
    tells: str
    queries: tuple[Query, ...]
    unit: str = "percentunit"
    width: int = 12
    height: int = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A data source: the plugin's type, and the uid that provisioning/datasources gives it."""

    type: str
    uid: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Panels over one source; `tenants` asks for the names that its variable offers."""

    name: str
    title: str
    source: Source
    tenants: str
    panels: tuple[Panel, ...]


def model(dashboard: Dashboard) -> Json:
    """The dashboard as Grafana reads it (schema 39, of Grafana 11)."""
    source: Json = {"type": dashboard.source.type, "uid": dashboard.source.uid}
    return {
        "uid": f"mfu-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["mfu"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "timezone": "utc",
        "refresh": "1m",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": [_tenant(dashboard, source)]},
        "panels": [
            _panel(number, panel, source, x, y)
            for number, (panel, x, y) in enumerate(_placed(dashboard.panels), start=1)
        ],
    }


def _tenant(dashboard: Dashboard, source: Json) -> Json:
    return {
        "name": "tenant",
        "label": "Tenant",
        "type": "query",
        "datasource": source,
        "query": dashboard.tenants,
        "definition": dashboard.tenants,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(panels: tuple[Panel, ...]) -> Iterator[tuple[Panel, int, int]]:
    """Each panel with its place: from left to right, on to the next row where it does not fit."""
    x = y = tallest = 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        yield panel, x, y
        x, tallest = x + panel.width, max(tallest, panel.height)


def _panel(number: int, panel: Panel, source: Json, x: int, y: int) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.tells,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        # Nothing is kept in less than five minutes but spans, and a rate needs as long.
        "interval": "5m",
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": [_target(query, panel, source, chr(ord("A") + n)) for n, query in enumerate(panel.queries)],
    }


def _target(query: Query, panel: Panel, source: Json, letter: str) -> Json:
    common: Json = {"refId": letter, "datasource": source}
    if source["type"] != "prometheus":
        kind = "timeseries" if panel.kind == "timeseries" else "table"
        return {**common, "editorType": "sql", "queryType": kind, "format": int(kind == "table"), "rawSql": query.text}
    now = panel.kind != "timeseries"
    form = "table" if panel.kind == "table" else "time_series"
    return {
        **common,
        "expr": query.text,
        "legendFormat": query.legend,
        "instant": now,
        "range": not now,
        "format": form,
    }
