"""What connects GPUs: topologies of four, written down by hand as their machines have them."""

import pytest

from mfu_sdk.peak.nvml import Link, Nvml, Port, link, path_between, port

from .conftest import H100, WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc

SWITCH = 255


def four(fake: Fake, **fields: int) -> None:
    for gpu in range(4):
        fake.device(gpu, WHOLE, "NVIDIA H100 80GB HBM3", **{**H100, **fields})


def between(nvml: Nvml, a: int, b: int) -> Link:
    """Asked both ways: it must be the same."""
    there, back = (link(found(nvml, f"GPU-000{a}9"), found(nvml, f"GPU-000{b}9")) for a, b in ((a, b), (b, a)))
    assert there == back
    return there


def test_through_switches(fake: Fake, nvml: Nvml) -> None:
    """Every pair of an HGX H100 has all eighteen links through the switches, 26.562 GB/s each."""
    four(fake, links=18, peer=SWITCH, link_version=6, **{f"fi164_{n}": 26562 for n in range(1, 18)}, fi164=26562)
    for a, b in ((0, 1), (0, 3), (2, 3)):
        assert between(nvml, a, b) == Link(
            "nvlink", 18, switched=True, nvlink_version="4.0", nvlink_bytes_per_s=18 * 26_562e6
        )


def test_the_poorer_bounds(fake: Fake, nvml: Nvml) -> None:
    """With links down on one side, what gets through to it is what it has left."""
    four(fake, links=18, peer=SWITCH, link_version=6, fi90=26562)
    fake.set(1, WHOLE, down=0b111)
    assert between(nvml, 0, 1).nvlinks == 15
    assert between(nvml, 0, 1).nvlink_bytes_per_s == 15 * 26_562e6
    assert between(nvml, 2, 3).nvlinks == 18


def test_bridged_pairs(fake: Fake, nvml: Nvml) -> None:
    """Two A100 PCIe pairs under bridges: twelve links inside of a pair, the machine's PCIe between pairs."""
    four(fake, links=12, link_version=4, fi90=25000, lanes=16)
    for gpu, peer in ((0, 1), (1, 0), (2, 3), (3, 2)):
        fake.set(gpu, WHOLE, peer=peer)
    for a, b, ancestor in ((0, 1, 10), (0, 2, 50), (1, 3, 50), (2, 3, 40)):
        fake.set(a, WHOLE, **{f"ancestor{b}": ancestor, f"p2p{b}_0": 0, f"p2p{b}_1": 0})
        fake.set(b, WHOLE, **{f"ancestor{a}": ancestor, f"p2p{a}_0": 0, f"p2p{a}_1": 0})
    assert between(nvml, 0, 1) == Link(
        "nvlink", 12, switched=False, nvlink_version="3.0", nvlink_bytes_per_s=300e9, peer_access=True
    )
    assert between(nvml, 2, 3).path == "nvlink"
    assert between(nvml, 0, 2) == Link("system", 0, peer_access=True)
    assert between(nvml, 1, 3).path == "system"


def test_a_ring(fake: Fake, nvml: Nvml) -> None:
    """Two links to each neighbour of a ring; across it there is only what PCIe has."""
    four(fake, links=4, link_version=2, fi90=25781)
    for gpu in range(4):
        left, right = (gpu - 1) % 4, (gpu + 1) % 4
        fake.set(gpu, WHOLE, peer0=left, peer1=left, peer2=right, peer3=right)
        fake.set(gpu, WHOLE, **{f"ancestor{other}": 20 for other in range(4)})
    assert between(nvml, 0, 1) == Link(
        "nvlink", 2, switched=False, nvlink_version="2.0", nvlink_bytes_per_s=2 * 25_781e6
    )
    assert between(nvml, 3, 0).nvlinks == 2
    assert between(nvml, 0, 2) == Link("pcie-switches", 0)


@pytest.mark.parametrize(
    ("ancestor", "path"),
    [
        (0, "board"), (10, "pcie-switch"), (20, "pcie-switches"), (30, "host-bridge"), (40, "numa-node"),
        (50, "system"), (60, None), (-3, None), (-4, None),
    ],
)  # fmt: skip
def test_without_nvlink(fake: Fake, nvml: Nvml, ancestor: int, path: str | None) -> None:
    """What PCIe traffic crosses, in words; a level that is new or refused is unknown."""
    four(fake)
    fake.set(0, WHOLE, ancestor1=ancestor, p2p1_0=0, p2p1_1=1)
    a, b = found(nvml, "GPU-00009"), found(nvml, "GPU-00019")
    assert link(a, b) == Link(path, 0, peer_access=False)  # type: ignore[arg-type]


def test_the_drivers_word_counts_more(fake: Fake, nvml: Nvml) -> None:
    """Links that are up while the fabric is not carry nothing; links that cannot be followed carry what they carry."""
    four(fake, links=18, peer=SWITCH, link_version=6, ancestor0=50, ancestor1=50, p2p0_2=5, p2p1_2=5)
    assert between(nvml, 0, 1) == Link("system", 0)
    # A virtual machine shows the bus of its own numbering at the other end.
    four(fake, links=18, peer=77, p2p0_2=0, p2p1_2=0)
    assert between(nvml, 0, 1) == Link("nvlink", None)


def test_refused_links(fake: Fake, nvml: Nvml) -> None:
    """Where neither links nor the driver's word are to be had, PCIe is not claimed to be the way."""
    four(fake, links=-4, ancestor0=30, ancestor1=30)
    assert between(nvml, 0, 1) == Link(None, None)


def test_unknown_speed(fake: Fake, nvml: Nvml) -> None:
    """One link without a speed leaves the sum unknown; a version of the future has no name."""
    four(fake, links=2, peer=SWITCH, link_version=99, fi164=26562)
    found_link = between(nvml, 0, 1)
    assert (found_link.nvlinks, found_link.nvlink_version, found_link.nvlink_bytes_per_s) == (2, None, None)


def test_slices(fake: Fake, nvml: Nvml) -> None:
    """Slices of one GPU are on it; to another GPU they have no NVLink, whatever its GPU has; alone is alone."""
    four(fake, links=18, peer=SWITCH, link_version=6)
    fake.mig(0, 16, 26, parent={**H100, "links": 18, "peer": SWITCH, "ancestor1": 40})
    first, second = found(nvml, "MIG-00000"), found(nvml, "MIG-00001")
    assert link(first, second) == Link("same gpu", 0, peer_access=False)
    assert link(first, found(nvml, "GPU-00019")) == Link("numa-node", 0, peer_access=False)
    assert link(first, first).path == "same device"
    whole = found(nvml, "GPU-00029")
    assert link(whole, whole) == Link("same device", None)


def test_by_uuid(fake: Fake) -> None:
    """What collectives call a link by: NVLink between two GPUs; nothing for one that NVML does not see."""
    four(fake, links=18, peer=SWITCH, link_version=6)
    assert path_between("GPU-00009", "00019") == "nvlink"
    assert path_between("GPU-00009", "GPU-elsewhere") is None
    fake.library.fake_broken(9)
    assert path_between("GPU-00009", "GPU-00019") is None
    assert fake.sessions == 0


def test_what_a_link_costs(fake: Fake, nvml: Nvml) -> None:
    """About 85 calls for two GPUs of eighteen links."""
    four(fake, links=18, peer=SWITCH, link_version=6, p2p1_2=0)
    a, b = found(nvml, "GPU-00009"), found(nvml, "GPU-00019")
    before = fake.calls
    link(a, b)
    # Per GPU eighteen states, one more that ends the list, eighteen kinds of the other end; UUIDs, address, speeds.
    assert fake.calls - before == 2 * (18 + 1 + 18) + 2 + 3 + 1 + 2


def test_port(fake: Fake, nvml: Nvml) -> None:
    """Generation and lanes, now and at most; of a slice, its GPU's."""
    fake.set(0, WHOLE, generation=1, lanes=8)
    assert port(found(nvml)) == Port(1, 8, 5, 16)
    fake.mig(0, 16)
    assert port(found(nvml, "MIG-00000")) == Port(5, 16, 5, 16)
    fake.set(0, WHOLE, lanes=-4)
    assert port(found(nvml)) == Port(5, None, 5, 16)
