"""Theoretical peaks against what vendors have published."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.peak.calibrate import with_theory
from mfu_sdk.peak.describe import as_json, describe
from mfu_sdk.peak.published import ARCHITECTURES, PRODUCTS, TENSOR
from mfu_sdk.peak.theory import Silicon, theoretical
from mfu_sdk.records import Peaks, Rate

NVIDIA, RTX, GEFORCE = "NVIDIA", "NVIDIA RTX", "GeForce"


@dataclass(frozen=True)
class Published:
    """A device as its driver presents it, and a figure of its vendor's as printed, the last digit being its precision.

    In TFLOP/s unless `unit` is "P". A sparse figure is twice the dense one, and a package holds `dies` devices.
    """

    name: str
    silicon: Silicon
    figure: str
    source: str
    dtype: str = "bfloat16"
    sparse: bool = False
    dies: int = 1
    unit: str = "T"

    def check(self) -> None:
        rate = theoretical(self.silicon).reference[self.dtype]
        scale = self.dies * (2 if self.sparse else 1)
        digits = len(self.figure.partition(".")[2])
        size = {"T": 1e12, "P": 1e15}[self.unit]
        assert rate.flops_per_s * scale / size == pytest.approx(float(self.figure), abs=0.5 * 10**-digits), rate.source


def nvidia(
    name: str, architecture: str, sms: int, mhz: int, product: str, brand: str, figure: str, source: str,
    *, dtype: str = "bfloat16", sparse: bool = False, unit: str = "T",
) -> Published:  # fmt: skip
    silicon = Silicon(architecture, sms, mhz, f"10de:{product}", brand)
    return Published(name, silicon, figure, source, dtype=dtype, sparse=sparse, unit=unit)


def amd(
    name: str, architecture: str, cus: int, mhz: int, figure: str, source: str, *, dies: int = 1, unit: str = "T"
) -> Published:
    return Published(name, Silicon(architecture, cus, mhz), figure, source, dies=dies, unit=unit)


# Names as the driver reports them. The clock is NVML's maximum, which none of these figures assumes unless it is the
# reference clock too.
DEVICES = [
    nvidia("Tesla V100-SXM2-16GB", "sm_70", 80, 1530, "1db1", "Tesla", "125", "V100 datasheet", dtype="float16"),
    nvidia("Tesla V100-SXM2-32GB", "sm_70", 80, 1530, "1db5", "Tesla", "125", "V100 datasheet", dtype="float16"),
    nvidia("Tesla V100-PCIE-32GB", "sm_70", 80, 1380, "1db6", "Tesla", "112", "V100 datasheet", dtype="float16"),
    nvidia("Tesla V100S-PCIE-32GB", "sm_70", 80, 1597, "1df6", "Tesla", "130", "V100 datasheet", dtype="float16"),
    nvidia("Tesla T4", "sm_75", 40, 1590, "1eb8", "Tesla", "65", "T4 datasheet", dtype="float16"),
    nvidia("TITAN RTX", "sm_75", 72, 2100, "1e02", "Titan", "130.5", "Turing whitepape", dtype="float16"),
    nvidia("Quadro RTX 8000", "sm_75", 72, 2100, "1e30", "Quadro RTX", "130.5", "Turing whitepape", dtype="float16"),
    nvidia("NVIDIA A100-SXM4-40GB", "sm_80", 108, 1410, "20b0", NVIDIA, "312", "A100 datasheet"),
    nvidia("NVIDIA A100-SXM4-80GB", "sm_80", 108, 1410, "20b2", NVIDIA, "312", "A100 datasheet"),
    nvidia("NVIDIA A100-PCIE-40GB", "sm_80", 108, 1410, "20f1", NVIDIA, "312", "A100 datasheet"),
    nvidia("NVIDIA A100 80GB PCIe", "sm_80", 108, 1410, "20b5", NVIDIA, "312", "A100 datasheet"),
    nvidia("NVIDIA A800-SXM4-80GB", "sm_80", 108, 1410, "20f3", NVIDIA, "312", "A800 datasheet"),
    nvidia("NVIDIA A30", "sm_80", 56, 1440, "20b7", NVIDIA, "165", "A30 datasheet"),
    nvidia("NVIDIA A10", "sm_86", 72, 1695, "2236", NVIDIA, "125", "A10 datasheet"),
    nvidia("NVIDIA A10G", "sm_86", 80, 1710, "2237", NVIDIA, "70", "A10G datasheet"),
    nvidia("NVIDIA A40", "sm_86", 84, 1740, "2235", NVIDIA, "149.7", "A40 datasheet"),
    nvidia("NVIDIA RTX A6000", "sm_86", 84, 2100, "2230", RTX, "154.8", "GA102 whitepape"),
    nvidia("NVIDIA GeForce RTX 3090", "sm_86", 82, 2100, "2204", GEFORCE, "71", "GA102 whitepape"),
    nvidia("NVIDIA GeForce RTX 3090 Ti", "sm_86", 84, 2115, "2203", GEFORCE, "80", "Ada whitepape"),
    nvidia("NVIDIA GeForce RTX 4080", "sm_89", 76, 3105, "2704", GEFORCE, "97.5", "Ada whitepape"),
    nvidia("NVIDIA GeForce RTX 4090", "sm_89", 128, 3105, "2684", GEFORCE, "165.2", "Ada whitepape"),
    nvidia("NVIDIA GeForce RTX 4090 D", "sm_89", 114, 3105, "2685", GEFORCE, "73.5", "specification", dtype="float32"),
    nvidia("NVIDIA RTX 6000 Ada Generation", "sm_89", 142, 3105, "26b1", RTX, "364.2", "Ada whitepape"),
    nvidia("NVIDIA L4", "sm_89", 58, 2040, "27b8", NVIDIA, "242", "L4 datasheet", sparse=True),
    nvidia("NVIDIA L20", "sm_89", 92, 2520, "26ba", NVIDIA, "119.5", "L20 specification"),
    nvidia("NVIDIA L40", "sm_89", 142, 2490, "26b5", NVIDIA, "362.1", "L40 datasheet", sparse=True),
    # Its page prints 362.05 dense, which is the L40's sparse figure, beside 733 sparse.
    nvidia("NVIDIA L40S", "sm_89", 142, 2520, "26b9", NVIDIA, "733", "L40S datasheet", sparse=True),
    nvidia("NVIDIA H100 80GB HBM3", "sm_90", 132, 1980, "2330", NVIDIA, "989.4", "H100 whitepape"),
    nvidia("NVIDIA H100 PCIe", "sm_90", 114, 1755, "2331", NVIDIA, "756", "H100 whitepape"),
    nvidia("NVIDIA H100 NVL", "sm_90", 132, 1785, "2321", NVIDIA, "1671", "H100 datasheet", sparse=True),
    nvidia("NVIDIA H800", "sm_90", 132, 1980, "2324", NVIDIA, "1979", "H800 specification", sparse=True),
    nvidia("NVIDIA H800 PCIe", "sm_90", 114, 1755, "2322", NVIDIA, "756", "H800 specification"),
    nvidia("NVIDIA H20", "sm_90", 78, 1980, "2329", NVIDIA, "148", "H20 specification"),
    nvidia("NVIDIA H200", "sm_90", 132, 1980, "2335", NVIDIA, "1979", "H200 datasheet", sparse=True),
    nvidia("NVIDIA H200 NVL", "sm_90", 132, 1785, "233b", NVIDIA, "1671", "H200 datasheet", sparse=True),
    nvidia("NVIDIA GH200 480GB", "sm_90", 132, 1980, "2342", NVIDIA, "1979", "GH200 datasheet", sparse=True),
    nvidia("NVIDIA B100", "sm_100", 148, 1965, "29bc", NVIDIA, "1750", "Blackwell brief"),
    nvidia("NVIDIA B200", "sm_100", 148, 1965, "2901", NVIDIA, "2250", "HGX B200 page"),
    nvidia("NVIDIA GB200", "sm_100", 152, 2062, "2941", NVIDIA, "2500", "GB200 NVL72 page"),
    nvidia("NVIDIA B300 SXM6 AC", "sm_103", 148, 2032, "3182", NVIDIA, "2250", "HGX B300 page"),
    nvidia("NVIDIA GB300", "sm_103", 152, 2070, "31c2", NVIDIA, "2500", "GB300 NVL72 page"),
    nvidia("NVIDIA GeForce RTX 5080", "sm_120", 84, 3090, "2c02", GEFORCE, "112.6", "RTX Blackwell whitepape"),
    nvidia("NVIDIA GeForce RTX 5090", "sm_120", 170, 3090, "2b85", GEFORCE, "209.5", "RTX Blackwell whitepape"),
    nvidia("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "sm_120", 188, 3090, "2bb1", RTX, "503.8",
           "RTX PRO Blackwell whitepape"),
    nvidia("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "sm_120", 188, 2800, "2bb4", RTX, "438.9",
           "RTX PRO Blackwell whitepaper"),
    amd("AMD Instinct MI100", "gfx908", 120, 1502, "92.3", "MI100 datasheet"),
    amd("AMD Instinct MI210", "gfx90a", 104, 1700, "181.0", "MI210 datasheet"),
    amd("AMD Instinct MI250", "gfx90a", 104, 1700, "362.1", "MI250 datasheet", dies=2),
    amd("AMD Instinct MI250X", "gfx90a", 110, 1700, "383.0", "MI250X datasheet", dies=2),
    amd("AMD Instinct MI300A", "gfx942", 228, 2100, "980.6", "MI300A datasheet"),
    amd("AMD Instinct MI300X", "gfx942", 304, 2100, "1307.4", "MI300X datasheet"),
    amd("AMD Instinct MI325X", "gfx942", 304, 2100, "1307.4", "MI325X datasheet"),
    amd("AMD Instinct MI350X", "gfx950", 256, 2200, "2.3", "MI350X datasheet", unit="P"),
    amd("AMD Instinct MI355X", "gfx950", 256, 2400, "2.5", "MI355X datasheet", unit="P"),
]  # fmt: skip

H100 = Silicon("sm_90", 132, 1980, "10de:2330", NVIDIA)
# The other formats, where their ratio to bf16 is no matter of course.
FORMATS = [
    Published("H100 fp32", H100, "66.9", "H100 whitepape", "float32"),
    Published("H100 fp64", H100, "66.9", "H100 whitepape", "float64"),
    Published("H100 tf32", H100, "494.7", "H100 whitepape", "tf32"),
    Published("H100 fp8", H100, "1978.9", "H100 whitepape", "float8_e4m3fn"),
    Published("H100 int8", H100, "1978.9", "H100 whitepape", "int8"),
    nvidia("V100 fp64", "sm_70", 80, 1530, "1db1", "Tesla", "7.8", "V100 datasheet", dtype="float64"),
    nvidia("T4 int8", "sm_75", 40, 1590, "1eb8", "Tesla", "130", "T4 datasheet", dtype="int8"),
    nvidia("T4 fp32", "sm_75", 40, 1590, "1eb8", "Tesla", "8.1", "T4 datasheet", dtype="float32"),
    nvidia("A100 fp32", "sm_80", 108, 1410, "20b2", NVIDIA, "19.5", "A100 datasheet", dtype="float32"),
    nvidia("A100 fp64", "sm_80", 108, 1410, "20b2", NVIDIA, "19.5", "A100 datasheet", dtype="float64"),
    nvidia("A100 tf32", "sm_80", 108, 1410, "20b2", NVIDIA, "156", "A100 datasheet", dtype="tf32"),
    nvidia("A100 int8", "sm_80", 108, 1410, "20b2", NVIDIA, "624", "A100 datasheet", dtype="int8"),
    nvidia("A10G fp32", "sm_86", 80, 1710, "2237", NVIDIA, "35", "A10G datasheet", dtype="float32"),
    nvidia("3090 tf32", "sm_86", 82, 2100, "2204", GEFORCE, "35.6", "GA102 whitepape", dtype="tf32"),
    nvidia("3090 int8", "sm_86", 82, 2100, "2204", GEFORCE, "285", "GA102 whitepape", dtype="int8"),
    nvidia("4090 fp32", "sm_89", 128, 3105, "2684", GEFORCE, "82.6", "Ada whitepape", dtype="float32"),
    nvidia("4090 fp8", "sm_89", 128, 3105, "2684", GEFORCE, "330.3", "Ada whitepape", dtype="float8_e4m3fn"),
    nvidia("4090 int8", "sm_89", 128, 3105, "2684", GEFORCE, "660.6", "Ada whitepape", dtype="int8"),
    nvidia("L40 int8", "sm_89", 142, 2490, "26b5", NVIDIA, "362", "L40 datasheet", dtype="int8"),
    nvidia("H20 fp8", "sm_90", 78, 1980, "2329", NVIDIA, "296", "H20 specification", dtype="float8_e5m2"),
    nvidia("B200 fp8", "sm_100", 148, 1965, "2901", NVIDIA, "4500", "HGX B200 page", dtype="float8_e4m3fn"),
    nvidia("B200 fp4", "sm_100", 148, 1965, "2901", NVIDIA, "18", "HGX B200 page", dtype="float4_e2m1fn_x2",
           sparse=True, unit="P"),
    nvidia("5090 fp32", "sm_120", 170, 3090, "2b85", GEFORCE, "104.8", "RTX Blackwell whitepape", dtype="float32"),
    nvidia("5090 fp4", "sm_120", 170, 3090, "2b85", GEFORCE, "1676", "RTX Blackwell whitepape",
           dtype="float4_e2m1fn_x2"),
    Published("MI300X fp8", Silicon("gfx942", 304, 2100), "2614.9", "MI300X datasheet", "float8_e4m3fnuz"),
    Published("MI300X tf32", Silicon("gfx942", 304, 2100), "653.7", "MI300X datasheet", "tf32"),
    Published("MI300X fp64", Silicon("gfx942", 304, 2100), "163.4", "MI300X datasheet", "float64"),
    Published("MI250X fp32", Silicon("gfx90a", 110, 1700), "95.7", "MI250X datasheet", "float32", dies=2),
    Published("MI355X fp64", Silicon("gfx950", 256, 2400), "78.6", "MI355X datasheet", "float64"),
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_published_peaks(device: Published) -> None:
    """The dense peak in 16 bits is the vendor's figure within its own rounding."""
    device.check()


@pytest.mark.parametrize("device", FORMATS, ids=lambda device: device.name)
def test_published_formats(device: Published) -> None:
    """So are the peaks of the other formats."""
    device.check()


@pytest.mark.parametrize(
    ("product", "architecture", "sms", "bf16_tflops"),
    [
        # Profile and SMs: `nvidia-smi mig -lgip`. The two 1g profiles of an H100 differ, and 3g is not 3/7 of 132.
        pytest.param("2330", "sm_90", 16, 119.93, id="H100 1g.10gb"),
        pytest.param("2330", "sm_90", 26, 194.89, id="H100 1g.20gb"),
        pytest.param("2330", "sm_90", 60, 449.74, id="H100 3g.40gb"),
        pytest.param("20b2", "sm_80", 14, 40.43, id="A100 1g.10gb"),
        pytest.param("20b2", "sm_80", 42, 121.28, id="A100 3g.40gb"),
        pytest.param("20b2", "sm_80", 98, 282.99, id="A100 7g.80gb"),
        pytest.param("2901", "sm_100", 18, 273.68, id="B200 1g.23gb"),
        # 148 × 16/78.
        pytest.param("2329", "sm_90", 16, 30.36, id="H20 1g.12gb"),
    ],
)
def test_slices(product: str, architecture: str, sms: int, bf16_tflops: float) -> None:
    """A MIG slice has the peak of its own SMs."""
    rate = theoretical(Silicon(architecture, sms, 1980, f"10de:{product}", NVIDIA, sliced=True)).reference["bfloat16"]
    assert rate.flops_per_s / 1e12 == pytest.approx(bf16_tflops, abs=0.005)


@given(st.sampled_from(sorted(ARCHITECTURES)), st.integers(1, 512), st.integers(300, 4000))
def test_linear_in_units_and_clock(architecture: str, units: int, mhz: int) -> None:
    """Twice the units are twice the peak, a thousandth more clock a thousandth more; every rate is exact and named."""
    one = theoretical(Silicon(architecture, 1, mhz, "10de:0000", RTX)).at_max_clock
    many = theoretical(Silicon(architecture, units, 2 * mhz, "10de:0000", RTX)).at_max_clock
    assert one
    assert one.keys() == many.keys()
    for dtype, rate in many.items():
        assert rate.flops_per_s == 2 * units * one[dtype].flops_per_s == rate.low == rate.high
        assert f"{units} {ARCHITECTURES[architecture].unit} × " in rate.source
        assert f"{2 * mhz} MHz" in rate.source


def test_two_clocks() -> None:
    """The reference clock is the headline and the source says whose it is; NVML's maximum stands beside it."""
    found = theoretical(H100)
    assert found.headline["bfloat16"].source == (
        "theory: 132 SM × 4096 FLOP/clock × 1830 MHz (reference clock, NVIDIA H100 whitepaper)"
    )
    assert found.headline == found.reference
    assert found.at_max_clock["bfloat16"].flops_per_s == 132 * 4096 * 1980e6
    assert found.missing is None
    peaks = Peaks("cuda:0", found.headline, {}, None, None, {})
    assert peaks.headline("float8_e4m3fn") == ("bfloat16", found.reference["bfloat16"])


def test_no_reference_clock() -> None:
    """A product that is not listed is rated at NVML's maximum, and its source says that."""
    found = theoretical(Silicon("sm_90", 132, 1980, "10de:2336", NVIDIA))
    assert found.reference == {}
    assert found.headline["bfloat16"].source == (
        "theory: 132 SM × 4096 FLOP/clock × 1980 MHz (NVML maximum clock; no reference clock is known for 10de:2336)"
    )


def test_partly_known_clock() -> None:
    """Formats without a reference clock of their own are rated at the maximum beside those that have one."""
    found = theoretical(Silicon("sm_100", 148, 1965, "10de:2901", NVIDIA)).headline
    assert "1856 MHz" in found["bfloat16"].source
    assert found["float32"].flops_per_s == 148 * 256 * 1965e6


@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "sm_120"])
def test_accumulation_is_told_by_the_brand(architecture: str) -> None:
    """GeForce halves what accumulates in fp32, workstation cards halve nothing, and other brands do not tell."""

    def rates(brand: str | None) -> dict[str, float]:
        found = theoretical(Silicon(architecture, 50, 2000, "10de:ffff", brand))
        return {dtype: rate.flops_per_s for dtype, rate in found.at_max_clock.items()}

    full, half = rates("NVIDIA RTX"), rates("GeForce")
    assert {dtype for dtype in full if half[dtype] != full[dtype]} == set(full) & {
        "bfloat16", "float16", "tf32", "float8_e4m3fn", "float8_e5m2",
    }  # fmt: skip
    assert half["bfloat16"] * 2 == full["bfloat16"]
    for brand in ("NVIDIA", None):
        assert rates(brand).keys() == {"float32", "float64"}
        missing = theoretical(Silicon(architecture, 50, 2000, "10de:ffff", brand)).missing
        assert missing is not None
        assert "mfu calibrate" in missing


@pytest.mark.parametrize(
    ("silicon", "why"),
    [
        (Silicon("sm_999", 132, 1980, "10de:2330", NVIDIA), "architecture sm_999; run `mfu calibrate`"),
        (Silicon("gfx1100", 96, 2500), "architecture gfx1100; run `mfu calibrate`"),
        (Silicon("sm_90", 132, 1980), "which product this sm_90 is; run `mfu calibrate`"),
        (Silicon("sm_90", 132, None, "10de:2336"), "neither a reference clock of 10de:2336 nor NVML's maximum"),
        (Silicon("sm_90", 0, 1980, "10de:2330"), "reports 0 SMs"),
        (Silicon("gfx942", 304), "engine clock of this gfx942 is not known"),
        (Silicon("sm_90", 78, 1980, "10de:2328"), "H20B or H20 NVL16 is cut below its chip"),
        (Silicon("sm_100", 18, 1965, "10de:29bc", sliced=True), "share of a NVIDIA B100 this slice is"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.architecture} {value.product}",
)
def test_unknown_has_none(silicon: Silicon, why: str) -> None:
    """What cannot be told has no peak, only a reason and the remedy."""
    found = theoretical(silicon)
    assert found.headline == {}
    assert found.missing is not None
    assert why in found.missing
    assert found.missing.endswith("run `mfu calibrate` to measure this device")


def test_turing_without_tensor_cores() -> None:
    """A GTX 1650 shares sm_75 with a T4 and has no tensor cores, so only listed products have a tensor rate."""
    found = theoretical(Silicon("sm_75", 14, 1665, "10de:1f82", "GeForce")).headline
    assert found.keys() == {"float32", "float64"}
    # 2.98 TFLOP/s by the specification of the card.
    assert found["float32"].flops_per_s / 1e12 == pytest.approx(2.98, abs=0.005)


def test_a_withheld_format_leaves_the_others() -> None:
    """An H800 keeps everything but the fp64 of the H100 that it is made of."""
    h800 = theoretical(Silicon("sm_90", 132, 1980, "10de:2324", NVIDIA))
    assert theoretical(H100).headline.keys() - h800.headline.keys() == {"float64"}
    assert h800.missing is not None
    assert "float64" in h800.missing


def test_tables_are_consistent() -> None:
    """Entries have sources and PCI ids, rates halve to whole numbers, and what has a figure is held against one."""
    tested = {PRODUCTS[device.silicon.product].name for device in DEVICES if device.silicon.product is not None}
    assert tested == {product.name for product in PRODUCTS.values() if product.tensor_mhz or product.published}
    for architecture in ARCHITECTURES.values():
        assert architecture.source
        assert all(flops > 0 and flops % 2 == 0 for flops in architecture.flops_per_clock.values())
    for key, product in PRODUCTS.items():
        assert product.source
        assert len(key) == len("10de:2330")
        assert int(key.removeprefix("10de:"), 16)
        assert product.halved <= TENSOR


def test_beside_what_was_measured() -> None:
    """The paper peaks join a calibration: the headline is theirs, the screen gives the share that was reached."""
    measured = Rate(730e12, 720e12, 740e12, source="calibrated", age_s=60.0)
    peaks = with_theory(Peaks("cuda:0", {}, {"bfloat16": measured}, None, None, {"name": "an H100"}), theoretical(H100))
    headline = peaks.headline("bfloat16")
    assert headline is not None
    assert headline[1].flops_per_s == 132 * 4096 * 1830e6
    assert peaks.achievable == {"bfloat16": measured}
    assert peaks.state["bfloat16_at_max_clock_flops_per_s"] == 132 * 4096 * 1980e6
    assert "theory_missing" not in peaks.state
    # 730 of 989.43.
    assert "on paper, 73.8% measured; theory: 132 SM × 4096 FLOP/clock × 1830 MHz" in describe(peaks)
    assert "float64" not in describe(peaks)
    assert as_json(peaks)["theoretical"]["bfloat16"]["flops_per_s"] == 132 * 4096 * 1830e6


def test_missing_theory_is_said() -> None:
    """Where nothing is known on paper, the state and the screen say why."""
    peaks = with_theory(Peaks("cuda:0", {}, {}, None, None, {}), theoretical(Silicon("sm_999", 1)))
    assert peaks.theoretical == {}
    assert "no published rates are known for architecture sm_999" in str(peaks.state["theory_missing"])
    assert "on paper: no published rates" in describe(peaks)
