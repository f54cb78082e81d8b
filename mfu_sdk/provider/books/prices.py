"""What the provider asks and what it pays: the price book and the cost book.

Amounts are `Decimal`, exact as the file has them, in the file's one currency. There are no default prices.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books import cells, table
from mfu_sdk.provider.books.spans import Span, covers, overlap
from mfu_sdk.provider.books.table import Entry, Tables

CONTRACTS: Final = ("on_demand", "reserved", "per_token")
"""Paid by the hour held; by the hour for a term agreed beforehand; by the token."""

_R = TypeVar("_R", "Price", "Cost")


@dataclass(frozen=True, slots=True)
class Price:
    """What a tenant (any where None) pays on a GPU type (any where None) under `contract` in [since, until).

    `per_gpu_hour` for `on_demand` and `reserved`, `per_million_tokens` for `per_token`. `commitment_hours` are the
    hours of one GPU that a reservation commits its tenant to.
    """

    tenant: str | None
    gpu_type: str | None
    contract: str
    per_gpu_hour: Decimal | None
    per_million_tokens: Decimal | None
    commitment_hours: Decimal | None
    since_unix_ns: int | None
    until_unix_ns: int | None

    @property
    def span(self) -> Span:
        """When it holds."""
        return self.since_unix_ns, self.until_unix_ns


@dataclass(frozen=True, slots=True)
class Cost:
    """What an hour of one GPU of this type costs the provider, fully loaded, in [since, until).

    `capex_per_gpu` is what one more would cost to buy, with its share of the server and the network.
    """

    gpu_type: str
    per_gpu_hour: Decimal
    capex_per_gpu: Decimal | None
    since_unix_ns: int | None
    until_unix_ns: int | None

    @property
    def span(self) -> Span:
        """When it holds."""
        return self.since_unix_ns, self.until_unix_ns


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Every price, in one currency (ISO 4217). `provider` is the name on the invoice, None where the file has none."""

    currency: str
    prices: tuple[Price, ...]
    provider: str | None = None

    def price(self, *, tenant: str, gpu_type: str, contract: str, at_unix_ns: int) -> Price | None:
        """The price that holds: one for this tenant before one for all, then one for this type before one for all."""
        fitting = [
            price
            for price in self.prices
            if price.contract == contract
            and price.tenant in (None, tenant)
            and price.gpu_type in (None, gpu_type)
            and covers(price.span, at_unix_ns)
        ]
        return max(fitting, key=lambda p: (p.tenant is not None, p.gpu_type is not None), default=None)

    def list_price(self, gpu_type: str, at_unix_ns: int) -> Decimal | None:
        """The list price of a GPU-hour: on demand, for a tenant without a price of its own."""
        fitting = [
            price
            for price in self.prices
            if price.contract == "on_demand"
            and price.tenant is None
            and price.gpu_type in (None, gpu_type)
            and covers(price.span, at_unix_ns)
        ]
        found = max(fitting, key=lambda p: p.gpu_type is not None, default=None)
        return None if found is None else found.per_gpu_hour

    def changes(self) -> tuple[int, ...]:
        """Every moment at which some price begins or ends."""
        return _changes(self.prices)


@dataclass(frozen=True, slots=True)
class CostBook:
    """Every cost, in one currency (ISO 4217)."""

    currency: str
    costs: tuple[Cost, ...]

    def cost(self, gpu_type: str, at_unix_ns: int) -> Decimal | None:
        """What a GPU-hour of this type costs at that moment; None where no row says."""
        found = self._row(gpu_type, at_unix_ns)
        return None if found is None else found.per_gpu_hour

    def capex(self, gpu_type: str, at_unix_ns: int) -> Decimal | None:
        """What one more GPU of this type costs to buy at that moment; None where no row says."""
        found = self._row(gpu_type, at_unix_ns)
        return None if found is None else found.capex_per_gpu

    def _row(self, gpu_type: str, at_unix_ns: int) -> Cost | None:
        return next((c for c in self.costs if c.gpu_type == gpu_type and covers(c.span, at_unix_ns)), None)

    def changes(self) -> tuple[int, ...]:
        """Every moment at which some cost begins or ends."""
        return _changes(self.costs)


def load_prices(paths: Iterable[Path]) -> tuple[PriceBook, CostBook]:
    """Both books, of YAML or CSV. Raises `ConfigurationError` for what breaks their form."""
    paths = tuple(paths)
    found = table.read(paths, frozenset({"prices", "costs"}), frozenset({"currency", "provider"}))
    currency = _currency(paths, found)
    prices = [(entry, _price(entry)) for entry in found.rows.get("prices", ())]
    costs = [(entry, _cost(entry)) for entry in found.rows.get("costs", ())]
    _apart(prices, lambda p: (p.tenant, p.gpu_type, p.contract))
    _apart(costs, lambda c: c.gpu_type)
    named = [cells.text(entry, "provider") for entry in found.values.get("provider", ())]
    book = PriceBook(currency, tuple(p for _, p in prices), named[0] if named else None)
    return book, CostBook(currency, tuple(c for _, c in costs))


def _currency(paths: Sequence[Path], found: Tables) -> str:
    said = [*found.values.get("currency", ())]
    # A CSV has no place but a column for what holds for all of it.
    said += [e for rows in found.rows.values() for e in rows if "currency" in e.cells]
    named = " and ".join(str(path) for path in paths)
    if not said:
        raise ConfigurationError(f"{named}: lacks `currency`; give its code of ISO 4217, such as `currency: USD`")
    for entry in said:
        code = entry.cells["currency"]
        if not isinstance(code, str) or len(code) != 3 or not code.isascii() or not code.isupper():
            raise cells.wrong(entry, "currency", "must be a code of ISO 4217, such as USD")
        if code != said[0].cells["currency"]:
            raise cells.wrong(entry, "currency", "differs from the others; keep all prices and costs in one currency")
    return str(said[0].cells["currency"])


def _price(entry: Entry) -> Price:
    cells.keys(
        entry,
        ("contract",),
        ("tenant", "gpu_type", "per_gpu_hour", "per_million_tokens", "commitment_hours", "from", "until", "currency"),
    )
    contract = cells.text(entry, "contract")
    if contract not in CONTRACTS:
        raise cells.wrong(entry, "contract", f"must be one of {', '.join(CONTRACTS)}")
    by_token = contract == "per_token"
    wanted, other = ("per_million_tokens", "per_gpu_hour")[:: 1 if by_token else -1]
    if wanted not in entry.cells or other in entry.cells:
        raise ConfigurationError(f"{entry.where}: contract {contract} is priced by `{wanted}` alone; give that")
    if not by_token and "gpu_type" not in entry.cells:
        raise ConfigurationError(f"{entry.where}: contract {contract} needs `gpu_type`, as the driver names the GPU")
    if "commitment_hours" in entry.cells and contract != "reserved":
        raise cells.wrong(entry, "commitment_hours", "belongs to contract reserved; leave it out")
    return Price(
        cells.text(entry, "tenant"),
        cells.text(entry, "gpu_type"),
        contract,
        cells.amount(entry, "per_gpu_hour"),
        cells.amount(entry, "per_million_tokens"),
        cells.amount(entry, "commitment_hours"),
        *cells.span(entry),
    )


def _cost(entry: Entry) -> Cost:
    cells.keys(entry, ("gpu_type", "per_gpu_hour"), ("capex_per_gpu", "from", "until", "currency"))
    gpu_type, per_gpu_hour = cells.text(entry, "gpu_type"), cells.amount(entry, "per_gpu_hour")
    assert gpu_type is not None
    assert per_gpu_hour is not None
    return Cost(gpu_type, per_gpu_hour, cells.amount(entry, "capex_per_gpu"), *cells.span(entry))


def _apart(rows: Sequence[tuple[Entry, _R]], key: Callable[[_R], Hashable]) -> None:
    """Refuse two rows for one thing at one time: which of them holds nobody could say."""
    seen: dict[Hashable, list[tuple[Entry, _R]]] = {}
    for entry, row in rows:
        for earlier, other in seen.setdefault(key(row), []):
            if overlap(row.span, other.span):
                raise ConfigurationError(
                    f"{entry.where}: holds at the same time as {earlier.where.rpartition(': ')[2]} for the same"
                    f" {_what(row)}; end the one with `until` where the other begins"
                )
        seen[key(row)].append((entry, row))


def _what(row: Any) -> str:
    return "tenant, GPU type and contract" if isinstance(row, Price) else "GPU type"


def _changes(rows: Iterable[Price] | Iterable[Cost]) -> tuple[int, ...]:
    return tuple(sorted({moment for row in rows for moment in row.span if moment is not None}))
