"""Where a report comes from: a data directory that nobody serves, a ClickHouse server, or a provider's address."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider import findings
from mfu_sdk.provider.books import Holdings, Snapshot
from mfu_sdk.provider.economics import focus_csv
from mfu_sdk.provider.report.build import assessment, build
from mfu_sdk.provider.report.model import Report, from_json
from mfu_sdk.provider.report.window import parse_range
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.shared import Levels
from mfu_sdk.provider.store import Address, Place, Store, is_store

_TIMEOUT_S: Final = 60.0


def from_data_dir(
    place: Place,
    *,
    since: str | None = None,
    until: str | None = None,
    tenant: str | None = None,
    now_unix_ns: int,
    books: Snapshot | None = None,
) -> Report:
    """The report on a data directory or ClickHouse server, as an operator sees it.

    It has money where `books` allow and no tenant is named.

    Raises `ConfigurationError` for a bad range or a path that is no store, into which nothing is written, and
    `StoreError` where `mfu serve` holds it or the server's schema is of another version.
    """
    span = parse_range(since, until, now_unix_ns)
    with _opened(place) as store:
        seen = None if tenant is not None else books or Snapshot()
        holdings = None if books is None else _holdings(books)
        levels = Levels(store, lambda: holdings)
        return build(store, span, tenant, seen, holdings, levels=levels, now_unix_ns=now_unix_ns)


def focus_from_data_dir(
    place: Place,
    books: Snapshot,
    *,
    since: str | None = None,
    until: str | None = None,
    now_unix_ns: int,
) -> str:
    """The money on a data directory or ClickHouse server as CSV of FOCUS.

    Raises as `from_data_dir`, and where the books do not allow it.
    """
    span = parse_range(since, until, now_unix_ns)
    with _opened(place) as store:
        return focus(store, span, books)


def focus(store: Store, span: Range, books: Snapshot) -> str:
    """The money of the whole fleet as CSV of FOCUS. Raises `ConfigurationError`, which says what the books lack."""
    judged = findings.judge(store, span, _holdings(books))
    found = assessment(store, span, books, judged)
    if found.economics is None or found.ledger is None or found.waterfall is None or books.inventory is None:
        raise ConfigurationError(f"format=csv: {found.missing}")
    regions = {node.host: node.region for node in books.inventory.nodes if node.region is not None}
    provider = None if books.prices is None else books.prices.provider
    return focus_csv(found.ledger, found.waterfall, found.economics.currency, provider, regions)


def _holdings(books: Snapshot) -> Holdings | None:
    return None if books.inventory is None else Holdings(books.inventory)


def _opened(place: Place) -> Store:
    if isinstance(place, Address):
        return Store(place, writes=False)
    if not is_store(place):
        what = "not a store of `mfu serve`" if Path(place).exists() else "no such data directory"
        raise ConfigurationError(f"{place}: {what}; name the one that `mfu serve --data` was given")
    return Store(place)


def from_url(
    url: str,
    token: str | None = None,
    *,
    since: str | None = None,
    until: str | None = None,
    tenant: str | None = None,
) -> Report:
    """The report of the provider whose page is at `url`, as the bearer of `token` may see it.

    Raises `ConfigurationError` where the address, the token or the range is wrong, or nobody answers.
    """
    asked = {"since": since, "until": until, "tenant": tenant}
    return from_json(_answer(url, "/api/report", token, asked))


def focus_from_url(url: str, token: str | None = None, *, since: str | None = None, until: str | None = None) -> str:
    """The money of the provider at `url` as CSV of FOCUS, for an operator's token. Raises as `from_url`."""
    return _answer(url, "/api/focus", token, {"since": since, "until": until})


def _answer(url: str, path: str, token: str | None, asked: Mapping[str, str | None]) -> str:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ConfigurationError(f"{url}: must be http:// or https://; give the address of the provider's page")
    query = urllib.parse.urlencode({name: value for name, value in asked.items() if value is not None})
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        f"{url.rstrip('/')}{path}?{query}",
        headers=({"Accept": "text/csv"} if path == "/api/focus" else {"Accept": "application/json"})
        | ({"Authorization": f"Bearer {token}"} if token else {}),
    )
    try:
        with _opener().open(request, timeout=_TIMEOUT_S) as response:
            return str(response.read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        with error:
            reason = " ".join(error.read(1000).decode("utf-8", "replace").split()) or error.reason
        remedy = "; name the file of a token that may read this: --token-file FILE" if error.code in (401, 403) else ""
        raise ConfigurationError(f"{url}: answered {error.code}: {reason}{remedy}") from None
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        raise ConfigurationError(f"{url}: did not answer ({cause}); is `mfu serve` running there?") from error


def _opener() -> urllib.request.OpenerDirector:
    """An opener that follows no redirect: urllib's own would take the token along to whatever host it names."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
