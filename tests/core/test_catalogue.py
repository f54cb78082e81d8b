"""GPU types by name, and what they are expected to reach."""

import pytest

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.catalogue import TYPES, GpuType, find
from mfu_sdk.peak.priors import link_prior, prior_peaks
from mfu_sdk.peak.published import PRODUCTS
from mfu_sdk.peak.theory import theoretical


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("H100 SXM", "H100 SXM"),
        ("h100-sxm", "H100 SXM"),
        ("H100 SXM5", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("H200", "H200 SXM"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("B200", "B200"),
        ("A10", "A10"),
        ("L40", "L40"),
        ("AMD Instinct MI300X", "MI300X"),
        ("mi300x", "MI300X"),
        ("RTX 4090", "RTX 4090"),
    ],
)
def test_names(name: str, type_name: str) -> None:
    """What people and drivers call it, whatever the case."""
    assert [each.name for each in find(name)] == [type_name]


def test_one_chip_in_several_types() -> None:
    """A100 says the chip and not the memory: the interval spans 1,555 to 2,039 GB/s, and the state names all four."""
    peaks = prior_peaks(find("A100"))
    assert peaks.state["among"] == "A100 SXM 40GB, A100 SXM 80GB, A100 PCIe 40GB, A100 PCIe 80GB"
    assert peaks.memory is not None
    assert peaks.memory.low < 1555e9 * 0.867 < 2039e9 * 0.90 < peaks.memory.high
    assert peaks.headline("bfloat16")[1].flops_per_s == pytest.approx(311.9e12, rel=1e-3)  # type: ignore[index]
    # gpu-fryer's 224 TFLOP/s on a PCIe card, mamf-finder's 271 on an SXM one.
    rate = peaks.achievable["bfloat16"]
    assert rate.low < 224e12 < rate.flops_per_s < 271e12 < rate.high


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("H100", r"'H100': may be any of H100 SXM, H100 PCIe, H100 NVL, which differ; name one of them"),
        ("V100", r"'V100': may be any of V100 SXM2 16GB"),
        ("H100 XSM", r"'H100 XSM': no GPU type has this name; one of .*H100 SXM"),
        # A slice's SMs are its own, and in no name.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", r"no GPU type has this name; one of V100"),
        ("NVIDIA", r"no GPU type has this name"),
        ("", r"no GPU type has this name"),
    ],
)
def test_names_that_say_too_little(name: str, told: str) -> None:
    """An unknown or ambiguous name is an error that names candidates, never another GPU's peak."""
    with pytest.raises(ConfigurationError, match=told):
        find(name)


@pytest.mark.parametrize("each", TYPES, ids=lambda each: each.name)
def test_types_hold_together(each: GpuType) -> None:
    """Every type is found by each of its names, has theory at a clock of its vendor's, and a prior within it."""
    assert all(find(name) == (each,) for name in (each.name, *each.names))
    assert each.silicon.product is None or each.silicon.product in PRODUCTS
    peaks = prior_peaks((each,))
    assert peaks.theoretical == theoretical(each.silicon).headline
    for dtype, rate in peaks.achievable.items():
        assert 0 < rate.low < rate.flops_per_s < rate.high <= peaks.theoretical[dtype].flops_per_s
        assert rate.source.startswith("prior: ")
    assert peaks.memory is not None
    assert 0 < peaks.memory.low < peaks.memory.flops_per_s < peaks.memory.high <= each.memory_bytes_per_s
    for link in (each.link, each.network):
        if link is not None:
            bus = link_prior(link).bus
            assert 0 < bus.low < bus.flops_per_s < bus.high


def test_names_are_unique() -> None:
    """No two types share a name."""
    names = [name.lower() for each in TYPES for name in {each.name, *each.names}]
    assert len(names) == len(set(names))


def test_a_type_without_figures_of_its_own_has_a_wide_prior() -> None:
    """An L40S: from GB200's 62 % less a twentieth to A100's 86.9 % and one more, of 362 TFLOP/s."""
    rate = prior_peaks(find("L40S")).achievable["bfloat16"]
    spec = prior_peaks(find("L40S")).theoretical["bfloat16"].flops_per_s
    assert rate.low / spec == pytest.approx(0.62 * 0.95)
    assert rate.high / spec == pytest.approx(271 / 312 * 1.05)
    assert "all published shares of NVIDIA's GPUs" in rate.source
