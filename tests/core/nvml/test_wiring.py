"""The path that collectives take, by NVML: the worst from a rank's device to its peers', and the best there is."""

from mfu_sdk.peak.device import Device
from mfu_sdk.peak.wiring import Wiring, wiring
from mfu_sdk.run.distributed import Place
from mfu_sdk.run.identity import _slice, _wiring

from .conftest import H100, WHOLE, Fake, needs_gcc

pytestmark = needs_gcc

SWITCH = 255
ALL = tuple(f"GPU-000{gpu}9" for gpu in range(4))


def four(fake: Fake, **fields: int) -> None:
    for gpu in range(4):
        fake.device(gpu, WHOLE, "NVIDIA H100 80GB HBM3", **{**H100, **fields})


def bridged(fake: Fake) -> None:
    """Two pairs with NVLink inside of each; between pairs a host bridge (0 to 2) or the machine."""
    four(fake, links=12, link_version=4)
    for gpu, peer in ((0, 1), (1, 0), (2, 3), (3, 2)):
        fake.set(gpu, WHOLE, peer=peer)
    for a, b, ancestor in ((0, 1, 10), (0, 2, 30), (0, 3, 50), (1, 2, 50), (1, 3, 50), (2, 3, 40)):
        fake.set(a, WHOLE, **{f"ancestor{b}": ancestor})
        fake.set(b, WHOLE, **{f"ancestor{a}": ancestor})


def test_all_behind_switches(fake: Fake) -> None:
    """Every path of an HGX machine is NVLink; across machines it is the network, whatever lies within."""
    four(fake, links=18, peer=SWITCH, link_version=6)
    assert wiring(ALL[0], ALL, ranks=4, here=4) == Wiring("nvlink", "nvlink")
    assert wiring(ALL[0], ALL, ranks=8, here=4) == Wiring("network", "nvlink")
    assert wiring(ALL[0], ALL, ranks=1, here=None) == Wiring("none", "nvlink")


def test_the_worst_path_counts(fake: Fake) -> None:
    """Within a bridged pair NVLink; with three more ranks the machine's path, though the best one is at hand."""
    bridged(fake)
    assert wiring(ALL[0], ALL[:2], ranks=2, here=2) == Wiring("nvlink", "nvlink")
    assert wiring(ALL[0], (ALL[0], ALL[2]), ranks=2, here=2) == Wiring("pcie", "nvlink")
    assert wiring(ALL[0], ALL, ranks=4, here=4) == Wiring("system", "nvlink")


def test_each_rank_sees_its_own(fake: Fake) -> None:
    """Where a process sees one device, as many ranks as the driver has devices have those; fewer are not told apart."""
    bridged(fake)
    assert wiring(ALL[0], ALL[:1], ranks=4, here=4).link == "system"
    assert wiring(ALL[0], ALL[:1], ranks=2, here=2) == Wiring(None, "nvlink")
    assert wiring(ALL[0], ALL, ranks=4, here=None) == Wiring(None, "nvlink")


def test_no_nvlink_anywhere(fake: Fake) -> None:
    """The best of such a machine is one PCIe switch, the worst of this rank's paths the processors' own link."""
    four(fake)
    for a in range(4):
        for b in range(4):
            fake.set(a, WHOLE, **{f"ancestor{b}": 20 if {a, b} == {2, 3} else 50})
    assert wiring(ALL[0], ALL, ranks=4, here=4) == Wiring("system", "pcie")


def test_slices(fake: Fake) -> None:
    """Two slices of one GPU meet through the host, and there is no other device to have a best path to."""
    fake.mig(0, 16, 16)
    assert wiring("MIG-00000", ("MIG-00000", "MIG-00001"), ranks=2, here=2) == Wiring("pcie", None)


def test_what_is_not_told(fake: Fake) -> None:
    """A driver that refuses leaves the link unknown, and the number of ranks is known all the same."""
    four(fake, links=-4)
    assert wiring(ALL[0], ALL, ranks=4, here=4) == Wiring(None, None)
    assert wiring(ALL[0], ALL, ranks=8, here=4) == Wiring("network", None)


def test_nothing_to_ask(fake: Fake) -> None:
    """A processor, a device that nobody knows, and no driver at all."""
    assert wiring(None, (), ranks=2, here=2) == Wiring(None, None)
    assert wiring(None, (), ranks=1, here=1) == Wiring("none", None)
    assert wiring("GPU-elsewhere", (), ranks=2, here=2) == Wiring(None, None)
    fake.library.fake_broken(9)
    assert wiring(ALL[0], ALL, ranks=2, here=1) == Wiring("network", None)
    fake.library.fake_broken(0)
    assert fake.sessions == 0


def test_of_a_run(fake: Fake) -> None:
    """A run on one device has no peers; a slice tells its profile and its GPU, by NVML or else by its name."""
    fake.mig(0, 16)
    whole = Device("cuda:0", "NVIDIA H100 80GB HBM3", "NVIDIA", "GPU-00009")
    slice_ = Device("cuda:0", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA", "MIG-00000")
    assert _wiring(whole, Place(0, 0, 1)) == Wiring("none", None)
    assert _wiring(Device("cpu", "EPYC", "AMD", None), Place(0, None, 1)) == Wiring("none", None)
    assert _slice(whole) == (None, None)
    assert _slice(slice_) == ("1g.10gb", "GPU-00009")
    fake.library.fake_broken(9)
    assert _slice(slice_) == ("1g.10gb", None)
    fake.library.fake_broken(0)
