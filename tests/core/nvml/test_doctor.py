"""What the doctor says of a GPU."""

from mfu_sdk.doctor import gpu_findings
from mfu_sdk.peak.nvml import Nvml

from .conftest import H100, WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc


def test_doctor(fake: Fake, nvml: Nvml) -> None:
    """The doctor's screen: a throttled slice among others under a lowered cap, with a stranger on it."""
    fake.mig(0, 16, 60, parent={**H100, "events": 0x24, "limit": 500_000})
    gpu = found(nvml, "MIG-00001")
    lines = {each.what: (each.state, each.text) for each in gpu_findings((gpu.identity(), gpu.state()), process=1)}
    assert lines["driver"] == ("good", "580.105.08, product 10de:2330 (NVIDIA), ECC on")
    assert lines["mig"][0] == "note"
    assert lines["mig"][1].startswith("a slice of 60 SMs and 9.8 GiB; 1 other")
    assert lines["clock"][0] == "note"
    assert "1755 of 1980 MHz, held down by: software power cap, software thermal slowdown" in lines["clock"][1]
    assert lines["power"][0] == "note"
    assert "limited to 500 of 700 W" in lines["power"][1]
    assert "4007" in lines["processes"][1]


def test_doctor_of_a_quiet_gpu(fake: Fake, nvml: Nvml) -> None:
    """An idle GPU with only this process on it is in order."""
    fake.device(0, WHOLE, "NVIDIA H100 80GB HBM3", events=0x1, processes=1)
    gpu = found(nvml)
    findings = list(gpu_findings((gpu.identity(), gpu.state()), process=4007))
    assert [each.what for each in findings] == ["driver", "clock"]
    assert {each.state for each in findings} == {"good"}
    assert [each.state for each in gpu_findings("NVML cannot be used", process=1)] == ["note"]
