"""The provider's books: what their files say, what they answer, and how a bad row is refused."""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books import Books, Holdings, Inventory, load_inventory, load_prices, mig

H100 = "NVIDIA H100 80GB HBM3"
HOUR = 3600 * 10**9


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


PRICES = f"""
currency: USD
prices:
  - {{gpu_type: "{H100}", contract: on_demand, per_gpu_hour: 2.95, from: 2026-01-01, until: 2026-07-01}}
  - {{gpu_type: "{H100}", contract: on_demand, per_gpu_hour: 2.49, from: 2026-07-01}}
  - {{tenant: acme, gpu_type: "{H100}", contract: on_demand, per_gpu_hour: 2.20, from: 2026-01-01}}
  - {{tenant: initech, contract: per_token, per_million_tokens: 0.60, from: 2026-01-01}}
  - {{gpu_type: "{H100}", contract: reserved, per_gpu_hour: 1.80, commitment_hours: 8760, from: 2026-01-01}}
costs:
  - {{gpu_type: "{H100}", per_gpu_hour: 2.10, from: 2026-01-01}}
"""

INVENTORY = f"""
nodes:
  - {{host: node-1, region: eu-1, gpu_type: "{H100}", gpus: 8, gpu_uuids: [GPU-a, GPU-b], link: nvlink,
      fabric: infiniband, from: 2026-01-01,
      downtime: [{{from: 2026-11-01T06:00:00Z, until: 2026-11-01T07:30:00+00:00}}]}}
  - {{host: node-2, gpu_type: "{H100}", gpus: 1, from: 2026-11-01T12:00:00Z, until: 2026-11-02}}
  - {{host: node-3, gpu_type: "NVIDIA A100-SXM4-40GB", gpus: 4, from: 2026-01-01}}
allocations:
  - {{tenant: acme, workload: llama-8b, allocation_id: "slurm-123", host: node-1, gpus: 2, gpu_uuids: [GPU-a, GPU-b],
      contract: on_demand, from: 2026-11-01T00:00:00Z, until: 2026-11-01T12:00:00Z}}
  - {{tenant: globex, host: node-1, gpus: 4, contract: reserved, from: 2026-11-01T00:00:00Z}}
  - {{tenant: initech, host: node-2, gpus: 2, profile: 3g.40gb, gpu_uuids: [MIG-x, MIG-y], contract: per_token,
      from: 2026-11-01T12:00:00Z}}
mig:
  - {{host: node-2, gpu: 0, layout: [3g.40gb, 3g.40gb], from: 2026-11-01T12:00:00Z}}
queue:
  - {{profile: 4g.40gb, waiting: 3, at: 2026-11-01T12:00:00Z}}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return load_inventory([written(tmp_path, "inventory.yaml", INVENTORY)])


def test_price(tmp_path: Path) -> None:
    """A tenant's own price goes before the list, the dates tell rows apart, and `until` is the first moment without."""
    prices, costs = load_prices([written(tmp_path, "prices.yaml", PRICES)])

    def price(tenant: str, contract: str, when: str) -> Decimal | None:
        found = prices.price(tenant=tenant, gpu_type=H100, contract=contract, at_unix_ns=at(when))
        return None if found is None else found.per_gpu_hour or found.per_million_tokens

    assert prices.currency == costs.currency == "USD"
    assert price("globex", "on_demand", "2026-06-30T23:59:59") == Decimal("2.95")
    assert price("globex", "on_demand", "2026-07-01") == Decimal("2.49")
    assert price("acme", "on_demand", "2026-07-01") == Decimal("2.20")
    assert price("acme", "reserved", "2026-07-01") == Decimal("1.80")
    assert price("initech", "per_token", "2026-07-01") == Decimal("0.60")
    assert price("acme", "per_token", "2026-07-01") is None
    assert price("globex", "on_demand", "2025-12-31T23:59:59") is None
    assert prices.list_price(H100, at("2026-07-01")) == Decimal("2.49")
    assert costs.cost(H100, at("2026-01-01")) == Decimal("2.10")
    assert costs.cost(H100, at("2025-12-31")) is None
    assert costs.cost("NVIDIA H200", at("2026-01-01")) is None


def test_hours(inventory: Inventory) -> None:
    """Owned is GPUs × time, available is that less downtime, stranded is what no slice covers of what is available."""
    holdings, day = Holdings(inventory), (at("2026-11-01"), at("2026-11-02"))
    hours = holdings.hours(*day)
    # 8 × 24 h + 1 × 12 h + 4 × 24 h, 8 × 1.5 h of downtime, and 1/7 of node-2's 12 h beside two slices of 3/7.
    assert [float(h) for h in (hours.owned, hours.unavailable, hours.available)] == [300, 12, 288]
    assert hours.stranded == Fraction(12, 7)
    assert holdings.hours(*day, host="node-1").available == 180
    assert holdings.hours(*day, gpu_type=H100).owned == 204
    assert holdings.hours(at("2025-01-01"), at("2025-02-01")).owned == 0
    # 2 × (12 − 1.5) h, 4 × (24 − 1.5) h, and 2 × 3/7 of 12 h.
    assert holdings.allocated_hours(*day, host="node-1") == 111
    assert holdings.allocated_hours(*day, host="node-2") == Fraction(72, 7)
    assert holdings.allocated_hours(*day) == 111 + Fraction(72, 7)


def test_hours_add(inventory: Inventory) -> None:
    """Hours of a range are the sum of those of its parts, wherever it is cut."""
    holdings, since, until = Holdings(inventory), at("2026-11-01"), at("2026-11-02")
    for cut in range(since, until, 97 * 60 * 10**9):
        for count in (
            lambda a, b: holdings.hours(a, b).owned,
            lambda a, b: holdings.hours(a, b).unavailable,
            lambda a, b: holdings.hours(a, b).stranded,
            holdings.allocated_hours,
        ):
            assert count(since, cut) + count(cut, until) == count(since, until)


def test_holder(inventory: Inventory) -> None:
    """A device is its UUID's holder's; without a UUID known, its node's only one; between several it stays open."""
    holdings, noon = Holdings(inventory), at("2026-11-01T12:00:00")
    early = at("2026-11-01T11:59:59")

    def tenant(when: int, gpu_uuid: str | None, host: str | None) -> str | None:
        found = holdings.holder(when, gpu_uuid=gpu_uuid, host=host)
        return None if found is None else found.tenant

    assert tenant(early, "GPU-a", None) == tenant(early, "GPU-a", "node-9") == "acme"
    assert tenant(early, "GPU-c", "node-1") == "globex"
    assert tenant(early, None, "node-1") is None
    assert [a.tenant for a in holdings.holders(early, host="node-1")] == ["acme", "globex"]
    assert tenant(noon, None, "node-1") == "globex"
    assert tenant(noon, "MIG-x", "node-2") == "initech"
    assert tenant(noon, "MIG-z", "node-2") is None
    assert tenant(at("2026-10-31"), "GPU-a", "node-1") is None


def test_queued_profile(inventory: Inventory) -> None:
    """Beside two slices of 3g nothing fits, though a seventh is free; on the day before nothing is cut."""
    holdings, noon = Holdings(inventory), at("2026-11-01T12:00:00")
    assert holdings.can_place("4g.40gb", noon) is False
    assert holdings.can_place("1g.10gb", noon) is False
    assert holdings.layouts(at("2026-10-31")) == ()
    assert [holdings.stranded_share(row) for row in holdings.layouts(noon)] == [Fraction(1, 7)]


@pytest.mark.parametrize(
    ("gpu_type", "profile", "share"),
    [
        (H100, "1g.10gb", (1, 7)),
        (H100, "1g.20gb", (1, 7)),
        (H100, "1g.10gb+me", (1, 7)),
        (H100, "7g.80gb", (1, 1)),
        ("NVIDIA A100-SXM4-40GB", "1g.10gb", (1, 7)),
        ("NVIDIA A100 80GB PCIe", "3g.40gb", (3, 7)),
        ("NVIDIA H100 NVL", "3g.47gb", (3, 7)),
        ("NVIDIA GH200 480GB", "4g.48gb", (4, 7)),
        ("NVIDIA H200", "7g.141gb", (1, 1)),
        ("NVIDIA B200", "2g.45gb", (2, 7)),
        ("NVIDIA B200", "7g.180gb", (1, 1)),
        ("NVIDIA B300 SXM6 AC", "7g.269gb", (1, 1)),
        ("NVIDIA A30", "2g.12gb", (1, 2)),
    ],
)
def test_share(gpu_type: str, profile: str, share: tuple[int, int]) -> None:
    """A profile's share of the SMs is that of the user guide's table."""
    assert mig.sm_share(gpu_type, [profile]) == Fraction(*share)


@pytest.mark.parametrize(
    ("layout", "profile", "fits"),
    [
        ([], "4g.40gb", True),
        (["3g.40gb"], "3g.40gb", True),
        (["3g.40gb"], "4g.40gb", None),
        (["3g.40gb:4"], "4g.40gb", True),
        (["3g.40gb:0"], "4g.40gb", False),
        (["4g.40gb"], "3g.40gb", True),
        (["4g.40gb", "1g.10gb"], "3g.40gb", False),
        (["1g.10gb:1"], "2g.20gb", True),
        (["1g.10gb:1", "1g.10gb:3", "1g.10gb:5"], "2g.20gb", False),
        (["1g.10gb:1", "1g.10gb:3", "1g.10gb:5"], "1g.20gb", True),
        (["1g.10gb"] * 7, "1g.10gb", False),
        (["1g.20gb"] * 4, "1g.10gb", False),
        (["2g.20gb"] * 3, "1g.10gb", True),
        (["2g.20gb"] * 3, "2g.20gb", False),
        (["7g.80gb"], "1g.10gb", False),
    ],
)
def test_placement(layout: list[str], profile: str, fits: bool | None) -> None:
    """A slice fits only where its profile may start; None where that hangs on how the others lie."""
    assert mig.can_place(H100, layout, profile) is fits


CSV = {
    "prices.csv": "gpu_type,contract,per_gpu_hour,from,currency\nNVIDIA H200,on_demand,3.5,2026-01-01,EUR\n",
    "costs.csv": "gpu_type,per_gpu_hour\nNVIDIA H200,2.6\n",
    "nodes.csv": (
        "\ufeffhost,gpu_type,gpus,gpu_uuids,from,downtime\n"
        "n1,NVIDIA H200,2,GPU-a GPU-b,2026-01-01,2026-02-01/2026-02-02;2026-03-01/2026-03-02T12:00:00Z\n"
        ",,,,,\n"
    ),
    "allocations.csv": "tenant,host,gpus,gpu_uuids,contract,from,until\nacme,n1,1,GPU-b,on_demand,2026-01-01,\n",
    "mig.csv": "host,gpu,layout\nn1,0,3g.71gb 1g.18gb\n",
    "queue.csv": "profile,waiting,at\n4g.71gb,3,2026-11-01T12:00:00Z\n",
}


def test_csv(tmp_path: Path) -> None:
    """CSV says the same as YAML, as a directory or one file a table; empty cells and lines say nothing."""
    money, owned = tmp_path / "money", tmp_path / "owned"
    for folder, names in ((money, ["prices.csv", "costs.csv"]), (owned, [name for name in CSV if "s.csv" not in name])):
        folder.mkdir()
        for name in names:
            written(folder, name, CSV[name])
    for name in ("nodes.csv", "allocations.csv"):
        written(owned, name, CSV[name])
    as_yaml = written(
        tmp_path,
        "all.yaml",
        """
        nodes: [{host: n1, gpu_type: NVIDIA H200, gpus: 2, gpu_uuids: [GPU-a, GPU-b], from: 2026-01-01,
                 downtime: [{from: 2026-02-01, until: 2026-02-02}, {from: 2026-03-01, until: 2026-03-02T12:00:00Z}]}]
        allocations: [{tenant: acme, host: n1, gpus: 1, gpu_uuids: [GPU-b], contract: on_demand, from: 2026-01-01}]
        mig: [{host: n1, gpu: 0, layout: [3g.71gb, 1g.18gb]}]
        queue: [{profile: 4g.71gb, waiting: 3, at: 2026-11-01T12:00:00Z}]
        """,
    )
    assert load_inventory([owned]) == load_inventory([as_yaml])
    assert load_inventory(sorted(owned.iterdir())) == load_inventory([as_yaml])
    prices, costs = load_prices([money])
    assert prices.currency == "EUR"
    assert prices.list_price("NVIDIA H200", at("2026-01-01")) == Decimal("3.5")
    assert costs.cost("NVIDIA H200", at("2000-01-01")) == Decimal("2.6")


def test_layout_ends_where_the_next_begins(tmp_path: Path) -> None:
    """A GPU's layout without `until` holds until its next one."""
    path = written(
        tmp_path,
        "i.yaml",
        """
        nodes: [{host: n1, gpu_type: NVIDIA H200, gpus: 1}]
        mig: [{host: n1, gpu: 0, layout: [7g.141gb], from: 2026-02-01}, {host: n1, gpu: 0, layout: [1g.18gb]}]
        """,
    )
    holdings = Holdings(load_inventory([path]))
    assert [row.layout for row in holdings.layouts(at("2026-01-31"))] == [("1g.18gb",)]
    assert [row.layout for row in holdings.layouts(at("2026-02-01"))] == [("7g.141gb",)]
    # A day with 6/7 of the GPU stranded, and one with nothing.
    assert holdings.hours(at("2026-01-31"), at("2026-02-02")).stranded == Fraction(24 * 6, 7)


def test_changed_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A changed file holds at once; one that became bad, or is gone, is logged and the last good one holds."""
    prices, owned = written(tmp_path, "prices.yaml", PRICES), tmp_path / "owned"
    owned.mkdir()
    written(owned, "nodes.csv", "host,gpu_type,gpus\nn1,NVIDIA H200,2\n")
    books = Books([prices], [owned])

    def gpus() -> Iterable[int]:
        found = books.current().inventory
        assert found is not None
        return [node.gpus for node in found.nodes]

    assert gpus() == [2]
    written(owned, "nodes.csv", "host,gpu_type,gpus\nn1,NVIDIA H200,16\n")
    assert gpus() == [16]
    written(owned, "more.yaml", "nodes: [{host: n2, gpu_type: NVIDIA H200, gpus: 4}]")
    assert gpus() == [4, 16]
    written(owned, "more.yaml", "nodes: [{host: n2, gpu_type: NVIDIA H200, gpus: none}]")
    assert gpus() == [4, 16]
    assert caplog.text.count("the last good hold") == 1
    prices.unlink()
    assert books.current().prices is not None
    assert "prices.yaml" in caplog.text


def test_without_files() -> None:
    """Books that were not named are None, and nothing is assumed in their place."""
    held = Books().current()
    assert (held.prices, held.costs, held.inventory) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map the names of tables to lists of rows"),
        ("prices: [", "is not YAML"),
        ("prices: []\nprices: []", "the key 'prices' stands twice"),
        ("prices: []", "lacks `currency`; give its code of ISO 4217"),
        ("currency: dollars", "currency='dollars' must be a code of ISO 4217, such as USD"),
        ("currency: USD\nprice: []", "'price' is no table of this file; it may hold costs, currency, prices, provider"),
        ("currency: USD\nprices: {a: 1}", "prices must be a list of rows"),
        ("currency: USD\nprices: [1]", "prices row 1: must map keys to values"),
        (
            "currency: USD\nprices: [{contract: spot}]",
            "row 1: contract='spot' must be one of on_demand, reserved, per_",
        ),
        ("currency: USD\nprices: [{gpu_type: X}]", "prices row 1: lacks `contract`"),
        ("currency: USD\nprices: [{contract: on_demand, hourly: 1}]", "'hourly' is no key of this table; it may have"),
        ("currency: USD\nprices: [{contract: on_demand, gpu_type: X}]", "is priced by `per_gpu_hour` alone; give that"),
        (
            "currency: USD\nprices: [{contract: per_token, per_million_tokens: 1, per_gpu_hour: 1}]",
            "contract per_token is priced by `per_million_tokens` alone",
        ),
        ("currency: USD\nprices: [{contract: reserved, per_gpu_hour: 1}]", "contract reserved needs `gpu_type`"),
        (
            "currency: USD\nprices: [{contract: on_demand, gpu_type: X, per_gpu_hour: 1, commitment_hours: 9}]",
            "commitment_hours=9 belongs to contract reserved; leave it out",
        ),
        (
            "currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: -1}]",
            "costs row 1: per_gpu_hour=-1 must be a number from",
        ),
        ("currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: .nan}]", "per_gpu_hour=nan must be a number"),
        ("currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: true}]", "per_gpu_hour=True must be a number"),
        ("currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: two}]", "per_gpu_hour='two' must be a number"),
        (
            "currency: USD\ncosts: [{gpu_type: 100, per_gpu_hour: 1}]",
            "gpu_type=100 must be text that is not empty; put",
        ),
        (
            "currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: 1, from: soon}]",
            "from='soon' must be a date or a time of ISO 8601",
        ),
        (
            "currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: 1, from: 2026-02-01, until: 2026-02-01}]",
            "until=2026-02-01 must be after from=2026-02-01",
        ),
        (
            "currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: 1}, {gpu_type: X, per_gpu_hour: 2, from: 2026-01-01}]",
            "costs row 2: holds at the same time as costs row 1 for the same GPU type; end the one with `until`",
        ),
        (
            "currency: USD\nprices: [{contract: on_demand, gpu_type: X, per_gpu_hour: 1, until: 2026-02-02},"
            " {contract: on_demand, gpu_type: X, per_gpu_hour: 1, from: 2026-02-01}]",
            "prices row 2: holds at the same time as prices row 1 for the same tenant, GPU type and contract",
        ),
    ],
    ids=str,
)
def test_bad_prices(tmp_path: Path, text: str, message: str) -> None:
    """A price or cost that breaks its form is refused in one line that names the file and the row."""
    path = written(tmp_path, "prices.yaml", text)
    with pytest.raises(ConfigurationError) as caught:
        load_prices([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


NODE = "nodes: [{host: n1, gpu_type: NVIDIA H200, gpus: 2, gpu_uuids: [GPU-a, GPU-b], from: 2026-01-01}]\n"
HELD = "tenant: acme, host: n1, contract: on_demand"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allocations: []", "no nodes are listed; what is owned must be known"),
        ("nodes: [{host: n1, gpu_type: X}]", "nodes row 1: lacks `gpus`"),
        ("nodes: [{host: n1, gpu_type: X, gpus: 0}]", "gpus=0 must be a whole number from 1"),
        ("nodes: [{host: n1, gpu_type: X, gpus: 2.5}]", "gpus=2.5 must be a whole number from 1"),
        ("nodes: [{host: n1, gpu_type: X, gpus: 1, gpu_uuids: [a, b]}]", "gpu_uuids names 2 where gpus=1"),
        ("nodes: [{host: n1, gpu_type: X, gpus: 2, gpu_uuids: [a, a]}]", "names one thing twice"),
        ("nodes: [{host: n1, gpu_type: X, gpus: 2, gpu_uuids: 7}]", "gpu_uuids=7 must be a list of names"),
        ("nodes: [{host: n1, gpu_type: X, gpus: 2, rack: 7}]", "'rack' is no key of this table"),
        (
            "nodes: [{host: n1, gpu_type: X, gpus: 2, downtime: 3h}]",
            "downtime='3h' must be a list of {from: …, until: …}",
        ),
        ("nodes: [{host: n1, gpu_type: X, gpus: 2, downtime: [soon]}]", "downtime=['soon'] must be a list of {from: …"),
        (
            "nodes: [{host: n1, gpu_type: X, gpus: 2, downtime: [{from: 2026-01-02}, {from: 2026-01-03}]}]",
            "downtime has two spans that overlap; join them into one",
        ),
        (
            "nodes: [{host: n1, gpu_type: X, gpus: 2}, {host: n1, gpu_type: X, gpus: 2, from: 2026-01-01}]",
            "nodes row 2: n1 is in nodes row 1 too, at the same time; own each GPU once",
        ),
        (
            "nodes: [{host: n, gpu_type: X, gpus: 2, gpu_uuids: [a]}, {host: m, gpu_type: Y, gpus: 1, gpu_uuids: [a]}]",
            "nodes row 2: a is in nodes row 1 too, at the same time",
        ),
        (NODE + "allocations: [{tenant: acme, host: n1, gpus: 1, from: 2026-02-01}]", "row 1: lacks `contract`"),
        (NODE + "allocations: [{" + HELD + ", gpus: 1}]", "allocations row 1: lacks `from`"),
        (
            NODE + "allocations: [{tenant: acme, host: n2, contract: on_demand, gpus: 1, from: 2026-02-01}]",
            "host='n2' is none of the nodes; add it to `nodes`, or correct it",
        ),
        (NODE + "allocations: [{" + HELD + ", gpus: 1, from: 2025-02-01}]", "node n1 is not owned then"),
        (
            NODE + "allocations: [{" + HELD + ", gpus: 1, gpu_uuids: [GPU-c], from: 2026-02-01}]",
            "GPU-c is none of the gpu_uuids of node n1",
        ),
        (NODE + "allocations: [{" + HELD + ", gpus: -4, from: 2026-02-01}]", "gpus=-4 must be a whole number from 1"),
        (
            NODE
            + "allocations: [{"
            + HELD
            + ", gpus: 2, from: 2026-02-01}, {"
            + HELD
            + ", gpus: 1, from: 2026-02-02}]",
            "row 2: with it 3 GPUs of n1 are held at 2026-02-02T00:00:00Z, which has 2; end the allocations before it",
        ),
        (
            NODE
            + "allocations: [{"
            + HELD
            + ", gpus: 1, gpu_uuids: [GPU-a], from: 2026-02-01, until: 2026-02-03}, {"
            + HELD
            + ", gpus: 1, gpu_uuids: [GPU-a], from: 2026-02-02}]",
            "allocations row 2: GPU-a is held by allocations row 1 at the same time; end that with `until`",
        ),
        (
            NODE + "allocations: [{" + HELD + ", gpus: 1, profile: 9g.9gb, from: 2026-02-01}]",
            "profile '9g.9gb': is no MIG profile of NVIDIA H200, which has about 1g.18gb, 1g.36gb, 2g.36gb",
        ),
        (
            NODE + "mig: [{host: n1, gpu: 2, layout: [7g.141gb]}]",
            "gpu=2 must be the number of a GPU of node n1, 0 to 1",
        ),
        (NODE + "mig: [{host: n1, gpu: 0, layout: []}]", "layout=[] must list at least one profile"),
        (NODE + "mig: [{host: n1, gpu: 0, layout: [4g.71gb, 4g.71gb]}]", "does not fit on one NVIDIA H200"),
        (NODE + "mig: [{host: n1, gpu: 0, layout: [1g.10gb]}]", "'1g.10gb': is no MIG profile of NVIDIA H200"),
        (
            "nodes: [{host: n1, gpu_type: Tesla T4, gpus: 2}]\nmig: [{host: n1, gpu: 0, layout: [1g.10gb]}]",
            "'Tesla T4': is not known to have MIG",
        ),
        (
            NODE
            + "mig: [{host: n1, gpu: 0, layout: [7g.141gb], from: 2026-02-01},"
            + " {host: n1, gpu: 0, layout: [7g.141gb], from: 2026-02-01}]",
            "mig row 2: GPU 0 of n1 has two layouts at once; end the earlier with `until`",
        ),
        (NODE + "queue: [{profile: 4g.71gb, waiting: -1, at: 2026-02-01}]", "waiting=-1 must be a whole number from 0"),
    ],
    ids=str,
)
def test_bad_inventory(tmp_path: Path, text: str, message: str) -> None:
    """A row that breaks its form, or its peace with the others, is refused in one line that names the file and it."""
    path = written(tmp_path, "inventory.yaml", text)
    with pytest.raises(ConfigurationError) as caught:
        load_inventory([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("machines.csv", "host\n", "a CSV's name says which table it is; call it one of allocations.csv, mig.csv"),
        ("nodes.csv", "", "line 1 must name the columns, each once"),
        ("nodes.csv", "host,host\n", "line 1 must name the columns, each once"),
        ("nodes.csv", "host;gpus;gpu_type\n", "line 1 parts its columns by ';'; save the table as CSV with commas"),
        ("nodes.csv", "host,gpus\nn1,2,3\n", "line 2: has 3 cells where line 1 names 2 columns; put a cell that holds"),
        ("nodes.csv", "host,gpu_type,gpus\nn1,X,\n", "line 2: lacks `gpus`"),
        ("nodes.csv", "host,gpu_type,gpus\nn1,X,many\n", "line 2: gpus='many' must be a whole number from 1"),
        ("nodes.txt", "", "its name must end in .yaml, .yml or .csv; rename it"),
    ],
)
def test_bad_csv(tmp_path: Path, name: str, text: str, message: str) -> None:
    """A CSV that breaks its form is refused in one line that names the file and the line."""
    path = written(tmp_path, name, text)
    with pytest.raises(ConfigurationError) as caught:
        load_inventory([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there, or a directory without tables, is refused."""
    with pytest.raises(ConfigurationError, match=r"none\.yaml: cannot be read"):
        load_prices([tmp_path / "none.yaml"])
    with pytest.raises(ConfigurationError, match=r"the directory holds no \.yaml and no \.csv file"):
        load_prices([tmp_path])


def test_form_is_where_errors_say(tmp_path: Path) -> None:
    """An error that leaves the form to a page names one that is there, and the page's examples are good books."""
    with pytest.raises(ConfigurationError, match=r"; see docs/how-to/books\.md for its form$"):
        load_prices([written(tmp_path, "empty.yaml", "")])
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "books.md").read_text("utf-8")
    prices, inventory = (block.split("```")[0] for block in page.split("```yaml\n")[1:])
    assert len(load_prices([written(tmp_path, "prices.yaml", prices)])[0].prices) == 3
    held = load_inventory([written(tmp_path, "inventory.yaml", inventory)])
    assert (len(held.nodes), len(held.allocations), len(held.mig), len(held.queue)) == (2, 2, 1, 1)
