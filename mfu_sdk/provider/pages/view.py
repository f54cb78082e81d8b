"""What a page is asked to show: its filters as GET parameters, so that a link holds all that it shows."""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Generic, TypeVar

from mfu_sdk.errors import ConfigurationError

T = TypeVar("T")

RANGES: Final = ("1h", "24h", "7d", "30d")
"""The ages that the page offers; any other that a link names is as good."""

PER_PAGE: Final = 50
_LONGEST: Final = 400


@dataclass(frozen=True, slots=True)
class View:
    """Filters; None or "" where one is not set. `tenant` is what was asked for, never what a reader may see."""

    since: str = "7d"
    until: str | None = None
    tenant: str | None = None
    gpu_type: str | None = None
    find: str = ""
    order: str = ""
    page: int = 1

    def link(self, path: str = "", **changes: Any) -> str:
        """The address of `path` under these filters with `changes`; what a table was searched for stays behind."""
        base = replace(self, page=1) if path == "" else replace(self, find="", order="", page=1)
        asked = replace(base, **changes)
        named = ((field.name, getattr(asked, field.name), field.default) for field in fields(View))
        query = urllib.parse.urlencode([(name, value) for name, value, usual in named if value not in (usual, None)])
        return f"{path}?{query}" if query or not path else path

    def path(self, *parts: str, **changes: Any) -> str:
        """The address of a page named by `parts`, each of which may hold anything."""
        return self.link("/" + "/".join(urllib.parse.quote(part, safe="") for part in parts), **changes)


def read(query: Mapping[str, str]) -> View:
    """The view that a query names. Raises `ConfigurationError` for a page that is no number."""
    asked = {field.name: query[field.name][:_LONGEST] for field in fields(View) if query.get(field.name)}
    asked.pop("page", None)
    page = query.get("page") or "1"
    if not (page.isascii() and page.isdigit() and 1 <= int(page[:9]) <= 1_000_000):
        raise ConfigurationError(
            f"page={page[:40]!r}: must be a number from 1 to 1,000,000; follow the page's own links"
        )
    return View(**asked, page=int(page[:9]))


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """One page of `found` rows out of `total`; `first` is the number of its first row, from one."""

    rows: tuple[T, ...]
    first: int
    found: int
    total: int
    page: int
    pages: int


def listing(rows: Sequence[T], view: View, text: Callable[[T], str]) -> Listing[T]:
    """The page of `rows` that `view` names, of those whose `text` holds every word that it looks for."""
    words = view.find.casefold().split()
    found = [row for row in rows if all(word in text(row).casefold() for word in words)] if words else list(rows)
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(view.page, pages)
    start = (page - 1) * PER_PAGE
    return Listing(tuple(found[start : start + PER_PAGE]), start + 1, len(found), len(rows), page, pages)
