"""What the doctor says of a GPU, and of a machine whose GPU torch runs on."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from mfu_sdk.doctor import Finding, examine, render
from mfu_sdk.doctor.examination import unused_gpus
from mfu_sdk.doctor.gpu import gpu_findings, view_of
from mfu_sdk.peak.nvml import Nvml

from .conftest import H100, WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc

HOUR_NS = 3600 * 10**9


def said(nvml: Nvml, uuid: str = "GPU-00009", *, process: int = 4007, uptime_s: float | None = None) -> list[Finding]:
    return list(gpu_findings(view_of(found(nvml, uuid)), process, uptime_s))


def one(findings: list[Finding], what: str) -> tuple[str, str]:
    [(state, text)] = [(each.state, each.text) for each in findings if each.what == what]
    assert "\n" not in text
    return state, text


@pytest.fixture
def quiet(fake: Fake) -> Fake:
    """An idle GPU with only this process on it."""
    fake.set(0, WHOLE, events=0x1, processes=1)
    return fake


def test_a_quiet_gpu(quiet: Fake, nvml: Nvml) -> None:
    """It is in order, and two lines say so."""
    findings = said(nvml)
    assert [each.what for each in findings] == ["driver", "clock"]
    assert {each.state for each in findings} == {"good"}
    assert one(findings, "driver")[1] == "580.105.08, product 10de:2330 (NVIDIA), ECC on"
    assert one(findings, "clock")[1] == "1755 of 1980 MHz (idle)"


def test_many_things_at_once(fake: Fake, nvml: Nvml) -> None:
    """A throttled slice among others under a lowered cap, with a stranger on it."""
    fake.mig(0, 16, 60, parent={**H100, "events": 0x24, "limit": 500_000})
    findings = said(nvml, "MIG-00001", process=1)
    assert one(findings, "driver") == ("good", "580.105.08, product 10de:2330 (NVIDIA), ECC on")
    state, text = one(findings, "mig")
    assert state == "note"
    assert text.startswith("a slice (1g.10gb) of 60 SMs and 9.8 GiB; 1 of 1 other slices are at work")
    state, text = one(findings, "clock")
    assert state == "note"
    assert "1755 of 1980 MHz, held down by: software power cap, software thermal slowdown; MFU will read low" in text
    assert "look at cooling" in text
    state, text = one(findings, "power")
    assert state == "note"
    assert "limited to 500 of 700 W" in text
    assert "nvidia-smi -pl 700" in text
    assert "4007" in one(findings, "processes")[1]


@pytest.mark.parametrize(
    ("events", "state", "words"),
    [
        (0x0, "good", "1755 of 1980 MHz"),
        (0x2, "note", "application clocks; MFU will read low; nvidia-smi -rac and -rgc undo what someone set"),
        (0x4, "note", "software power cap; MFU will read low; its limit binds, as it may at full load"),
        (0x20, "note", "software thermal slowdown; MFU will read low; look at cooling"),
        (0x8, "bad", "hardware slowdown; MFU will read low; look at cooling; look at the power supply"),
        (0x48, "bad", "hardware slowdown, hardware thermal slowdown; MFU will read low; look at cooling"),
        (0x60, "bad", "hardware thermal slowdown; MFU will read low; look at cooling"),
        (0x80, "bad", "power brake; MFU will read low; look at the power supply"),
        (0x84, "bad", "MFU will read low; its limit binds, as it may at full load; look at the power supply"),
        (0x1000, "note", "held down by: 0x1000; MFU will read low"),
    ],
)
def test_what_holds_the_clock(quiet: Fake, nvml: Nvml, events: int, state: str, words: str) -> None:
    """Software's limits are notes, hardware's are bad, alone or with others; one without a name is its bit."""
    quiet.set(0, WHOLE, events=events)
    found_state, text = one(said(nvml), "clock")
    assert found_state == state
    assert text.endswith(words)


def test_refused_events(quiet: Fake, nvml: Nvml) -> None:
    """Reasons and clocks that are not told are not made up."""
    quiet.set(0, WHOLE, events=-4, sm=-4, max_sm=-4)
    assert one(said(nvml), "clock") == ("good", "unknown of unknown MHz")


@pytest.mark.parametrize(
    ("now", "usual", "noted"), [(1980, 1980, False), (1312, 1312, False), (1410, 1980, True), (-3, 1980, False)]
)
def test_application_clocks(quiet: Fake, nvml: Nvml, now: int, usual: int, noted: bool) -> None:
    """Below their default someone set them; a default below the maximum is the vendor's and does not bind (V100)."""
    quiet.set(0, WHOLE, application=now, default_application=usual, max_sm=1980)
    notes = [each.text for each in said(nvml) if each.state == "note"]
    assert bool(notes) == noted
    if noted:
        assert "set to 1410 MHz, 1980 is the default" in notes[0]
        assert "nvidia-smi -rac" in notes[0]


@pytest.mark.parametrize(
    ("limit", "hours", "noted"),
    [("held1", 5, "thermal: 5.0 h"), ("held1", 0.9, None), ("held0", 80, None), ("fi253", 2, "power brake: 2.0 h")],
)
def test_heat_since_boot(quiet: Fake, nvml: Nvml, limit: str, hours: float, noted: str | None) -> None:
    """Of a hundred hours: five of heat are 5 % and told, less than 1 % is not, a power limit is no illness."""
    quiet.set(0, WHOLE, held_at=1, **{limit: int(hours * HOUR_NS)})
    notes = [each.text for each in said(nvml, uptime_s=100 * 3600.0) if each.what == "throttled"]
    assert len(notes) == (noted is not None)
    if noted is not None:
        assert notes[0].startswith(f"{noted} since the driver was loaded, at least {hours:.0f}% of its time")
    assert [each.what for each in said(nvml, uptime_s=None)] == ["driver", "clock"]


def test_more_heat_than_time(quiet: Fake, nvml: Nvml) -> None:
    """A counter that is past the machine's own time is told without a share of it."""
    quiet.set(0, WHOLE, held_at=1, held1=2 * HOUR_NS)
    assert one(said(nvml, uptime_s=3600.0), "throttled")[1].startswith("thermal: 2.0 h since the driver was loaded: ex")


@pytest.mark.parametrize(
    ("busy", "state", "words"),
    [
        ((), "good", "it has no neighbours"),
        ((0, 0), "good", "its GPU's 2 other slices are idle now"),
        ((1, 0), "note", "1 of 2 other slices are at work"),
        ((1, 2), "note", "2 of 2 other slices are at work"),
        ((1, -4), "note", "an unknown number of 2 other slices are at work"),
    ],
)
def test_neighbours(quiet: Fake, nvml: Nvml, busy: tuple[int, ...], state: str, words: str) -> None:
    """Slices that exist do no harm, those at work do."""
    quiet.mig(0, 16, *(16 for _ in busy), parent={**H100, "events": 0x1})
    for index, processes in enumerate(busy, start=1):
        quiet.set(0, index, processes=processes)
    found_state, text = one(said(nvml, "MIG-00000"), "mig")
    assert found_state == state
    assert words in text


def test_a_partitioned_gpu(quiet: Fake, nvml: Nvml) -> None:
    """Named by its own UUID, which slice it is cannot be told."""
    quiet.mig(0, 16, 16)
    state, text = one(said(nvml), "mig")
    assert state == "note"
    assert "set CUDA_VISIBLE_DEVICES to the slice's MIG-UUID" in text


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({"ecc_pending": 0}, "note", "on now, off after the next reset"),
        ({"ecc": 0, "ecc_pending": 1}, "note", "off now, on after the next reset"),
        ({"errors1": 2}, "bad", "2 uncorrected errors"),
        ({"rows_pending": 1}, "note", "waits for a reset"),
        ({"pages_pending": 1}, "note", "waits for a reset"),
        ({"rows_pending": 1, "rows_failed": 1}, "bad", "no spare left"),
    ],
)
def test_memory(quiet: Fake, nvml: Nvml, fields: dict[str, int], state: str, words: str) -> None:
    """ECC that will change, errors, and rows that are or cannot be replaced."""
    quiet.set(0, WHOLE, **fields)
    found_state, text = one(said(nvml), "ecc")
    assert found_state == state
    assert words in text


def test_bus(quiet: Fake, nvml: Nvml) -> None:
    """Missing lanes are told; a generation that an idle GPU lowered is not."""
    quiet.set(0, WHOLE, lanes=4, generation=1)
    state, text = one(said(nvml), "pcie")
    assert state == "note"
    assert "4 of 16 lanes" in text
    assert "4 times as long" in text
    quiet.set(0, WHOLE, lanes=16)
    assert "pcie" not in [each.what for each in said(nvml)]


@pytest.fixture
def cuda(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """torch as it is where it runs on the library's first GPU."""
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", uuid="00009", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    return fake


def test_one_screen(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything wrong that can be at once, it is one screen, and the worst is marked."""
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    cuda.set(
        0, WHOLE, events=0xEC, limit=500_000, application=1410, ecc_pending=0, errors1=1, rows_pending=1, lanes=8,
        held1=10**18, held_at=1,
    )  # fmt: skip
    findings = examine()
    lines = render(findings).splitlines()
    assert len(lines) == len(findings) <= 24
    assert [each.what for each in findings if each.state == "bad"] == ["clock", "ecc", "debugging"]
    assert any(line.startswith("ok    on paper     bfloat16 989.4 TFLOP/s") for line in lines)
    assert cuda.sessions == 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda fake: fake.library.fake_broken(4), "NVML cannot be used (Insufficient Permissions)"),
        (lambda fake: fake.library.fake_broken(9), "NVML cannot be used (Driver Not Loaded)"),
        (lambda fake: fake.set(0, WHOLE, forbidden=1), "NVML: GPU-00009 may not be read (Insufficient Permissions)"),
        (lambda fake: fake.device(0, WHOLE, ""), "NVML: GPU-00009 is not seen"),
    ],
    ids=["no permission", "no driver", "no permission for the GPU", "not seen"],
)
def test_cuda_without_nvml(cuda: Fake, spoil: Callable[[Fake], None], words: str) -> None:
    """One line says why, and what MFU rests on instead."""
    spoil(cuda)
    findings = examine()
    state, text = one(findings, "driver")
    assert state == "note"
    assert text.startswith(words)
    assert text.endswith("; MFU rests on a peak that the run measures at its start")
    paper = one(findings, "on paper")[1]
    assert paper == "NVML does not tell which product this sm_90 is; run `mfu calibrate` to measure this device"
    assert "clock" not in [each.what for each in findings]


def test_torch_that_fails(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA that breaks under torch is a finding in one line, and the exporter is looked at all the same."""

    def broken(_device: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    findings = examine()
    state, text = one(findings, "device")
    assert state == "bad"
    assert text.startswith("cannot be examined (RuntimeError: CUDA error: unspecified launch failure Compile")
    assert "traces" in [each.what for each in findings]


def test_gpus_that_torch_does_not_use(fake: Fake) -> None:
    """A build without CUDA on a machine with GPUs is told; on one without, nothing is."""
    fake.device(1, WHOLE, "NVIDIA H100 80GB HBM3")
    state, text = one(list(unused_gpus("2.13.0+cpu")), "device")
    assert state == "note"
    assert text.startswith("NVIDIA's driver lists 2 GPUs, and torch 2.13.0+cpu sees none")
    for gpu in range(2):
        fake.device(gpu, WHOLE, "")
    assert list(unused_gpus("2.13.0+cpu")) == []
    fake.library.fake_broken(9)
    assert list(unused_gpus("2.13.0+cpu")) == []
