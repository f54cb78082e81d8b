"""The doctor on any machine: processor, debugging aids, calibrations, the screen."""

import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mfu_sdk.doctor import Finding, examine, render
from mfu_sdk.doctor.debugging import debugging_findings
from mfu_sdk.doctor.peaks import divisor, peak_findings
from mfu_sdk.doctor.processor import Processor, processor_findings, quota_cores, read_processor, slow_governor
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.settings import Settings

DAY_S = 86400.0
NOTHING_WRONG = [Finding("debugging", "good", "no aid is on in this environment that slows a run down")]


def files(root: Path, **texts: str) -> Path:
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("texts", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000",
                "sys/fs/cgroup/pod/box/cpu.max": "150000 50000",
            },
            2.0,
        ),
        # The path is the host's, and the container's own group is mounted.
        ({"proc/self/cgroup": "0::/kubepods/x", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "a b c"}, None),
        ({}, None),
    ],
)
def test_quota(tmp_path: Path, texts: dict[str, str], cores: float | None) -> None:
    """The least that any group above the process gives, in both versions of cgroups."""
    assert quota_cores(files(tmp_path, **texts)) == cores


@pytest.mark.parametrize(
    ("governors", "driver", "slow"),
    [
        (("performance", "powersave"), "acpi-cpufreq", "powersave"),
        (("powersave", "powersave"), "intel_pstate", None),
        (("performance", "schedutil"), "acpi-cpufreq", None),
        ((), "", None),
    ],
)
def test_governor(tmp_path: Path, governors: tuple[str, ...], driver: str, slow: str | None) -> None:
    """One slow core is enough; a driver that chooses by itself is not slow; a machine without governors says none."""
    for index, governor in enumerate(governors):
        at = f"sys/devices/system/cpu/cpu{index}/cpufreq"
        files(tmp_path, **{f"{at}/scaling_governor": governor + "\n", f"{at}/scaling_driver": driver + "\n"})
    assert slow_governor(tmp_path) == slow


def test_this_machine() -> None:
    """What is read here is possible."""
    found = read_processor()
    assert 1 <= found.usable_cores <= found.cores
    assert found.quota_cores is None or found.quota_cores > 0
    assert found.load is not None
    assert found.load >= 0


FREE = Processor(cores=8, usable_cores=8, quota_cores=None, load=1.0)


def test_a_free_processor() -> None:
    """Its load is worth a line where it is what is measured, and none beside a GPU."""
    assert list(processor_findings(FREE, 8, measured=True)) == [Finding("load", "good", "1.0 on 8 cores")]
    assert list(processor_findings(FREE, 8, measured=False)) == []


@pytest.mark.parametrize(
    ("processor", "what", "words"),
    [
        (Processor(8, 8, None, 9.5), "load", "9.5 on 8 cores: others compete"),
        (Processor(8, 8, 2.5, 1.0), "quota", "2.5 cores to torch's 4 threads.*OMP_NUM_THREADS=2,"),
        (Processor(8, 8, 0.5, 1.0), "quota", "OMP_NUM_THREADS=1,"),
        (Processor(8, 3, None, 1.0), "affinity", "4 threads take turns on 3 of 8 cores; set OMP_NUM_THREADS=3"),
        (Processor(8, 8, 4.0, None, "powersave"), "governor", "powersave keeps .* cpupower"),
    ],
)
@pytest.mark.parametrize("measured", [True, False])
def test_a_crowded_processor(processor: Processor, what: str, words: str, measured: bool) -> None:
    """Each thing that makes four threads wait is one note, with its remedy, with a GPU and without."""
    [note] = [each for each in processor_findings(processor, 4, measured=measured) if each.state == "note"]
    assert note.what == what
    assert re.search(words, note.text)


def test_nothing_is_on() -> None:
    """One line says that nothing slows a run down; switched-off variables are nothing."""
    off = {"CUDA_LAUNCH_BLOCKING": "0", "TORCH_NCCL_BLOCKING_WAIT": "false", "TORCH_DISTRIBUTED_DEBUG": "OFF"}
    for environment in (
        {},
        off,
        {"NVIDIA_TF32_OVERRIDE": "1", "TORCH_LOGS": "+dynamo", "LD_PRELOAD": "libjemalloc.so"},
    ):
        assert list(debugging_findings(environment, torch, cuda=True)) == NOTHING_WRONG


@pytest.mark.parametrize(
    ("name", "value", "state", "on_cpu"),
    [
        ("CUDA_LAUNCH_BLOCKING", "1", "bad", False),
        ("AMD_SERIALIZE_KERNEL", "3", "bad", False),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1", "bad", False),
        ("NV_SANITIZER_INJECTION_PORT_BASE", "49152", "bad", False),
        ("CUDA_INJECTION64_PATH", "/opt/cutracer.so", "note", False),
        ("NVIDIA_TF32_OVERRIDE", "0", "note", False),
        ("TORCH_DISTRIBUTED_DEBUG", "detail", "note", False),
        ("TORCH_NCCL_BLOCKING_WAIT", "1", "note", False),
        ("TORCH_COMPILE_DISABLE", "1", "note", True),
        ("TORCHDYNAMO_DISABLE", "1", "note", True),
    ],
)
def test_variables(name: str, value: str, state: str, on_cpu: bool) -> None:
    """Each is told by name and value with what it does; what slows a GPU alone is no news on a processor."""
    [finding] = debugging_findings({name: value}, torch, cuda=True)
    assert (finding.state, finding.text.startswith(f"{name}={value}: ")) == (state, True)
    [finding] = debugging_findings({name: value}, torch, cuda=False)
    assert (finding.state != "good") == on_cpu


def test_a_sanitizer() -> None:
    """A preloaded sanitizer is bad wherever it runs."""
    [finding] = debugging_findings({"LD_PRELOAD": "/usr/lib/libasan.so.8"}, torch, cuda=False)
    assert (finding.state, "libasan.so.8" in finding.text) == ("bad", True)


def test_torch_debugging() -> None:
    """Anomaly detection, deterministic algorithms and a recording profiler are seen in the process that has them."""
    with torch.autograd.set_detect_anomaly(mode=True):
        [finding] = debugging_findings({}, torch, cuda=False)
        assert (finding.state, "anomaly detection" in finding.text) == ("bad", True)
    torch.use_deterministic_algorithms(mode=True)
    try:
        [finding] = debugging_findings({}, torch, cuda=False)
        assert (finding.state, "use_deterministic_algorithms" in finding.text) == ("note", True)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    with torch.autograd.profiler.profile():
        [finding] = debugging_findings({}, torch, cuda=False)
        assert (finding.state, "profiler is recording" in finding.text) == ("note", True)
    assert list(debugging_findings({}, torch, cuda=False)) == NOTHING_WRONG


def test_a_debug_build() -> None:
    """torch says of itself what it is."""
    debug = SimpleNamespace(
        version=SimpleNamespace(debug=True), __version__="2.13.0", autograd=torch.autograd,
        is_anomaly_enabled=torch.is_anomaly_enabled,
        are_deterministic_algorithms_enabled=torch.are_deterministic_algorithms_enabled,
    )  # fmt: skip
    [finding] = debugging_findings({}, debug, cuda=False)
    assert (finding.state, finding.text) == ("bad", "torch 2.13.0 is a debug build; install a release build")


def test_tracing() -> None:
    """Whatever Python calls for each line or call is named."""
    before = sys.getprofile()
    sys.setprofile(lambda *_event: None)
    try:
        [finding] = debugging_findings({}, torch, cuda=False)
    finally:
        sys.setprofile(before)
    assert (finding.state, finding.text.startswith("sys.setprofile in this interpreter")) == ("note", True)
    tracemalloc.start()
    try:
        [finding] = debugging_findings({}, torch, cuda=False)
    finally:
        tracemalloc.stop()
    assert (finding.state, finding.text.startswith("tracemalloc")) == ("note", True)


def test_development_mode(tmp_path: Path) -> None:
    """`python -X dev` is seen by the command itself."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-m", "mfu_sdk.cli", "doctor"],
        env=os.environ | {"MFU_CACHE_DIR": str(tmp_path), "TORCH_COMPILE_DISABLE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note  debugging    Python's development mode" in done.stdout
    assert "note  debugging    TORCH_COMPILE_DISABLE=1: torch.compile compiles nothing; unset it" in done.stdout


def rate(flops_per_s: float, source: str, age_s: float = 60.0) -> Rate:
    return Rate(flops_per_s, flops_per_s * 0.99, flops_per_s * 1.01, source, age_s)


def peaks(device: str = "cuda:0", **fields: object) -> Peaks:
    made: dict[str, object] = {"theoretical": {}, "achievable": {}, "memory": None, "clock_mhz": None, "state": {}}
    return Peaks(device=device, **{**made, **fields})  # type: ignore[arg-type]


AUTO, OFF = Settings(), Settings(calibrate="off")
MISSING = {"missing": "no calibration of X; run `mfu calibrate`"}


def test_what_mfu_rests_on() -> None:
    """The best peak that there is, by name: on paper, else measured, else none."""
    paper = {"bfloat16": rate(989.4e12, "datasheet")}
    measured = {"bfloat16": rate(700e12, "torch.mm"), "float32": rate(50e12, "torch.mm")}
    both = peaks(theoretical=paper, achievable=measured)
    assert divisor(both, AUTO) == "the bfloat16 peak of 989.4 TFLOP/s, datasheet"
    assert divisor(peaks(achievable=measured), AUTO) == "the bfloat16 peak of 700.0 TFLOP/s, torch.mm"
    assert divisor(peaks(), AUTO) == "a peak that the run measures at its start"
    assert divisor(peaks(), OFF) == "no peak, and is None"


def test_no_peak() -> None:
    """A run may measure one at its start, unless that is forbidden and there is none on paper either."""
    [finding] = peak_findings(peaks(state=MISSING), AUTO, None)
    assert (finding.state, finding.text) == ("note", MISSING["missing"])
    [finding] = peak_findings(peaks(state=MISSING), OFF, None)
    assert (finding.state, "MFU_CALIBRATE=off" in finding.text) == ("bad", True)
    paper = peaks(theoretical={"bfloat16": rate(989.4e12, "datasheet")}, state=MISSING)
    assert [each.state for each in peak_findings(paper, OFF, None)] == ["good", "note"]


@pytest.mark.parametrize(("age_s", "state"), [(6.9 * DAY_S, "good"), (7.1 * DAY_S, "note")])
def test_stale(age_s: float, state: str) -> None:
    """A week is the limit."""
    [finding] = peak_findings(peaks(achievable={"bfloat16": rate(7e14, "torch.mm", age_s)}), AUTO, None)
    assert (finding.state, "run `mfu calibrate`" in finding.text) == (state, state == "note")
    assert "7 d ago" in finding.text


def test_contended() -> None:
    """A peak measured beside others is no peak."""
    known = peaks(device="cpu", achievable={"float32": rate(1e11, "torch.mm")}, state={"contended": True})
    assert [each.state for each in peak_findings(known, AUTO, None)] == ["good", "bad"]


def test_what_speaks_against_a_peak() -> None:
    """One that heat held down, one that a run has outrun, and one of another device are notes, each with its remedy."""
    hot = peaks(achievable={"bfloat16": rate(7e14, "torch.mm")}, state={"degraded": "power brake"})
    low = peaks(achievable={"bfloat16": rate(7e14, "torch.mm")}, state={"suspect": "9 of 10 steps were faster"})
    sister = peaks(
        achievable={"bfloat16": rate(7e14, "prior: burst, torch.mm of GPU-1")},
        state={"missing": "no calibration (that of 2026-11-01 had driver 570 (now 580)); run `mfu calibrate`"},
    )
    for known, words in (
        (hot, "held down by power brake; run"),
        (low, "9 of 10 steps"),
        (sister, "driver 570 (now 580)"),
    ):
        notes = [each.text for each in peak_findings(known, AUTO, None) if each.state == "note"]
        assert len(notes) == 1
        assert words in notes[0]


def test_render() -> None:
    """A finding is a line for grep; on a narrow terminal it goes on below itself, and nothing is cut."""
    findings = [Finding("python", "good", "3.11"), Finding("clock", "bad", "one two three four five six seven eight")]
    assert render(findings) == ("ok    python       3.11\nBAD   clock        one two three four five six seven eight")
    assert render(findings, 44).splitlines() == [
        "ok    python       3.11",
        "BAD   clock        one two three four five",
        "                   six seven eight",
    ]
    assert render([Finding("traces", "bad", "http://" + "a" * 90)], 80).endswith("a" * 90)


@pytest.mark.parametrize("enabled", ["1", "0"])
def test_examined_here(monkeypatch: pytest.MonkeyPatch, enabled: str) -> None:
    """On this machine everything is looked at and nothing raises."""
    monkeypatch.setenv("MFU_ENABLED", enabled)
    whats = [each.what for each in examine()]
    assert {"python", "torch", "device", "debugging", "traces", "metrics"} <= set(whats)
    assert ("settings" in whats) == (enabled == "0")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and the exporter is looked at all the same."""
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = {each.what: each.state for each in examine()}
    assert (findings["torch"], "traces" in findings) == ("bad", True)
