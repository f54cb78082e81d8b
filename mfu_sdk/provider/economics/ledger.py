"""The books to a ledger: a window's owned and held hours, what they cost and bring at the rates of each moment."""

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from mfu_sdk.provider.books import Allocation, CostBook, Holdings, Node, Price, PriceBook
from mfu_sdk.provider.books.holdings import available
from mfu_sdk.provider.books.spans import clipped_ns, pieces
from mfu_sdk.provider.economics.inputs import HOUR_NS, Held, Ledger, Owned


def ledger(
    holdings: Holdings, costs: CostBook | None, prices: PriceBook | None, since_unix_ns: int, until_unix_ns: int
) -> Ledger:
    """All owned hours in [since, until). Amounts are None where a book is, or has no row for some of the hours."""
    owned: list[Owned] = []
    rows: dict[int, _Row] = {}
    for node in holdings.inventory.nodes:
        span = clipped_ns(node.span, since_unix_ns, until_unix_ns)
        if span is None:
            continue
        sums = _Node()
        cuts = () if costs is None else costs.changes()
        for piece in pieces(*span, cuts):
            rate = None if costs is None else costs.cost(node.gpu_type, piece[0])
            _add(holdings, node, piece, rate, prices, sums, rows)
        owned.append(sums.owned(node))
    held = [row.held() for row in rows.values() if row.gpu_ns]
    return Ledger(since_unix_ns, until_unix_ns, tuple(owned), tuple(held))


@dataclass(slots=True)
class _Sum:
    """Hours and their value, None as soon as some of them have none."""

    gpu_ns: int = 0
    value: Fraction | None = field(default_factory=Fraction)

    def add(self, gpu_ns: int, rate: Decimal | None) -> None:
        self.gpu_ns += gpu_ns
        if gpu_ns and self.value is not None:
            self.value = None if rate is None else self.value + Fraction(rate) * gpu_ns / HOUR_NS


@dataclass(slots=True)
class _Node:
    whole: _Sum = field(default_factory=_Sum)
    unavailable: _Sum = field(default_factory=_Sum)
    stranded: _Sum = field(default_factory=_Sum)
    unsold: _Sum = field(default_factory=_Sum)

    def owned(self, node: Node) -> Owned:
        return Owned(
            node.host,
            node.gpu_type,
            node.gpus,
            self.whole.gpu_ns,
            self.unavailable.gpu_ns,
            self.stranded.gpu_ns,
            self.unsold.gpu_ns,
            self.whole.value,
            self.unavailable.value,
            self.stranded.value,
            self.unsold.value,
        )


@dataclass(slots=True)
class _Row:
    allocation: Allocation
    gpu_type: str
    cost: _Sum = field(default_factory=_Sum)
    bill: _Sum = field(default_factory=_Sum)
    tokens: _Sum = field(default_factory=_Sum)
    at_list: _Sum = field(default_factory=_Sum)
    committed: Decimal | None = None

    @property
    def gpu_ns(self) -> int:
        return self.cost.gpu_ns

    def held(self) -> Held:
        allocation = self.allocation
        by_token = allocation.contract == "per_token"
        price = self.tokens.value
        return Held(
            allocation.tenant,
            allocation.workload,
            allocation.allocation_id,
            allocation.host,
            self.gpu_type,
            allocation.contract,
            allocation.gpus,
            self.gpu_ns,
            self.cost.value,
            None if by_token else self.bill.value,
            price * HOUR_NS / self.gpu_ns if by_token and price is not None else None,
            self.at_list.value,
            None if self.committed is None else Fraction(self.committed),
        )


def _add(
    holdings: Holdings,
    node: Node,
    piece: tuple[int, int],
    rate: Decimal | None,
    prices: PriceBook | None,
    sums: _Node,
    rows: dict[int, _Row],
) -> None:
    """One stretch of a node at one cost."""
    whole = node.gpus * (piece[1] - piece[0])
    up = node.gpus * sum(until - since for since, until in available(node, *piece))
    held_ns = 0
    for part in holdings.held(*piece, host=node.host, gpu_type=node.gpu_type):
        gpu_ns = int(part.gpus * (part.until_unix_ns - part.since_unix_ns))
        held_ns += gpu_ns
        # By identity: two allocations may say the same.
        row = rows.setdefault(id(part.allocation), _Row(part.allocation, part.gpu_type))
        row.cost.add(gpu_ns, rate)
        for since, until in pieces(part.since_unix_ns, part.until_unix_ns, prices.changes() if prices else ()):
            within = int(part.gpus * (until - since))
            price = _price(prices, part.allocation, node.gpu_type, since)
            row.bill.add(within, price.per_gpu_hour if price else None)
            row.tokens.add(within, price.per_million_tokens if price else None)
            row.at_list.add(within, prices.list_price(node.gpu_type, since) if prices else None)
            row.committed = price.commitment_hours if price else None
    hours = holdings.hours(*piece, host=node.host, gpu_type=node.gpu_type)
    # A GPU sold whole has nothing to strand, whatever its layout says.
    stranded = min(int(hours.stranded * HOUR_NS), max(0, up - held_ns))
    sums.whole.add(whole, rate)
    sums.unavailable.add(whole - up, rate)
    sums.stranded.add(stranded, rate)
    sums.unsold.add(up - held_ns - stranded, rate)


def _price(prices: PriceBook | None, held: Allocation, gpu_type: str, at_unix_ns: int) -> Price | None:
    if prices is None:
        return None
    return prices.price(tenant=held.tenant, gpu_type=gpu_type, contract=held.contract, at_unix_ns=at_unix_ns)
