"""`mfu run`: a program runs as Python itself would run it, and its training is measured."""

import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mfu_sdk.integrations.launch import launch
from mfu_sdk.integrations.script import Ended

from .conftest import Receiver, Run

pytestmark = pytest.mark.slow

MFU = (sys.executable, "-m", "mfu_sdk.cli", "run")
BATCH, WIDE, OUT = 16, 64, 32
TRAIN = 2 * 2 * BATCH * WIDE * OUT

# Everything of a program's surroundings that differs where one is not run by Python itself.
PROBE = """
import json, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": __file__, "package": __package__,
    "spec": None if __spec__ is None else [__spec__.name, __spec__.origin], "loader": type(__loader__).__name__,
    "cached": __cached__ if "__cached__" in globals() else None, "builtins": type(__builtins__).__name__,
    "doc": __doc__, "main": sys.modules["__main__"].__dict__ is globals(), "torch": "torch" in sys.modules,
}))
"""

TRAINING = f"""
import torch
from torch import nn
model = nn.Linear({WIDE}, {OUT}, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    model(torch.randn({BATCH}, {WIDE})).sum().backward()
    optimizer.step()
"""

# Where what a program delivers at its end is looked at: on a machine that does other things too, two seconds may not be
# enough to be heard.
PATIENT = "from mfu_sdk.export import worker\nworker.EXIT_S = 60.0\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("how", ["script", "below", "link", "module", "package", "folder", "archive"])
def test_a_program_sees_what_python_shows_it(how: str, run: Run, tmp_path: Path) -> None:
    """Arguments, import path and `__main__` are those of `python PROGRAM`; torch is not there before it asks for it."""
    write(tmp_path / "probe.py", PROBE)
    write(tmp_path / "deep" / "probe.py", PROBE)
    write(tmp_path / "deep" / "__main__.py", PROBE)
    (tmp_path / "link.py").symlink_to(tmp_path / "deep" / "probe.py")
    with zipfile.ZipFile(tmp_path / "probe.zip", "w") as archive:
        archive.writestr("__main__.py", PROBE)
    words: list[str] = {
        "script": ["probe.py"], "below": ["deep/probe.py"], "link": ["link.py"], "module": ["-m", "probe"],
        "package": ["-m", "deep"], "folder": ["deep"], "archive": ["probe.zip"],
    }[how]  # fmt: skip
    words += ["--lr", "3", "-q", "--", "--name"]
    alone, ours = run(sys.executable, *words), run(*MFU, *words)
    assert (ours.returncode, alone.returncode) == (0, 0), ours.stderr
    assert json.loads(ours.stdout) == json.loads(alone.stdout)
    assert "did not import torch" in ours.stderr


@pytest.mark.parametrize(
    "ending",
    [
        "raise SystemExit",
        "raise SystemExit(7)",
        "raise SystemExit('a message')",
        "import os; os._exit(5)",
        "def fail():\n    raise ValueError('mine')\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    fail()",
        "raise KeyboardInterrupt",
        "from mfu_sdk.errors import ConfigurationError\nraise ConfigurationError('of the program')",
        "raise BrokenPipeError('of the program')",
        "import click\nclick.command()(lambda: None)(['--wrong'])",
        "this is no Python",
        "import sys\nsys.excepthook = lambda *_: print('hooked')\nraise ValueError",
    ],
)
def test_a_program_ends_as_it_would(ending: str, run: Run, tmp_path: Path) -> None:
    """Exit code, output and traceback are those of `python PROGRAM`, to the letter."""
    script = write(tmp_path / "ends.py", f"import atexit\natexit.register(print, 'at exit')\n{ending}\n")
    alone, ours = run(sys.executable, script), run(*MFU, "-q", script)
    assert (ours.returncode, ours.stdout, ours.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_it_is_measured(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    """Six steps: five are measured, with the FLOPs that a hand works out, and sent; the summary goes to stderr."""
    script = write(tmp_path / "train.py", PATIENT + TRAINING + "print('trained')\n")
    said = run(*MFU, "--name", "mine", "--spans", "all", script, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert (said.returncode, said.stdout) == (0, "trained\n"), said.stderr
    assert said.stderr.startswith("mine: 5 steps")
    assert [span["mfu.model.flop"] for span in receiver.named("mfu.step")] == [TRAIN] * 5
    [ended] = receiver.named("mfu.run")
    assert ended["mfu.run.step.count"] == 5


def test_children_are_left_alone(run: Run, tmp_path: Path) -> None:
    """Processes that the program spawns, and its loader's workers, run without us; the program itself is measured."""
    script = write(
        tmp_path / "train.py",
        """
import multiprocessing as mp, sys
import torch
from torch import nn
from torch.utils.data import DataLoader

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, index):
        return torch.randn(8)

def train(loader):
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in loader:
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

def child(queue):
    train(torch.randn(4, 2, 8))
    queue.put([name for name in sys.modules if name.startswith("mfu_sdk")])

if __name__ == "__main__":
    context = mp.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(queue.get(), flush=True)
    process.join()
    train(DataLoader(Rows(), batch_size=2, num_workers=1, multiprocessing_context="fork"))
    print(process.exitcode)
""",
    )
    said = run(*MFU, script)
    assert (said.returncode, said.stdout) == (0, "[]\n0\n"), said.stderr
    assert said.stderr.count("steps (") == 1
    assert said.stderr.startswith("Linear: 5 steps")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Launches a program in this process, which has torch already: what was said when it had ended."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setenv("MFU_CALIBRATE", "off")

    def launched(text: str, *arguments: str) -> list[str]:
        said: list[str] = []
        launch(str(write(tmp_path / "program.py", text)), arguments, say=said.append)
        return said

    return launched


def test_a_program_without_steps_is_told_so(launched: Callable[..., list[str]]) -> None:
    """No optimizer steps: one line says so and what to do."""
    [line] = launched("import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))\n")
    assert "no optimizer stepped in this process" in line
    assert "\n" not in line


def test_a_program_of_one_step_is_told_so(launched: Callable[..., list[str]]) -> None:
    """Steps are measured from the second on: one alone is none."""
    [line] = launched(TRAINING.replace("range(6)", "range(1)"))
    assert "ended before its second step" in line


def test_a_program_with_a_monitor_is_left_to_it(
    launched: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own monitor measures what it would have measured, and one line says that we added nothing."""
    opened = TRAINING.replace("for _", "import mfu_sdk\nrun = mfu_sdk.monitor(model)\nrun.__enter__()\nfor _")
    [line] = launched(opened + "run.__exit__(None, None, None)\nprint(run.summary().steps)")
    assert capsys.readouterr().out == "6\n"
    assert "has a monitor of its own" in line


def test_the_error_ends_the_run_and_passes(launched: Callable[..., list[str]]) -> None:
    """What the program raised is handed on, after the summary of what it did until then."""
    with pytest.raises(Ended) as caught:
        launched(TRAINING + "raise ZeroDivisionError('mine')\n")
    assert repr(caught.value.error) == "ZeroDivisionError('mine')"


def test_other_ranks_are_silent(launched: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several ranks rank 0 alone says what came of it."""
    monkeypatch.setenv("RANK", "1")
    assert launched(TRAINING) == []


def test_disabled(launched: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_ENABLED=0: the program runs, and nothing of ours does."""
    monkeypatch.setenv("MFU_ENABLED", "0")
    assert launched(TRAINING) == []


def test_quiet(run: Run, tmp_path: Path) -> None:
    """With `-q` nothing is said."""
    assert run(*MFU, "-q", write(tmp_path / "none.py", "")).stderr == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.py"], r"none.py: no such file; give a Python script"),
        (["bash"], r"bash: is a program .*torchrun --no-python mfu run train.py"),
        (["pkg.train"], r"pkg.train: no such file; a module's name goes with -m"),
        (["-m", "none.such"], r"-m none.such: no module named none.such"),
        (["."], r"\.: has no __main__ module in it"),
        (["--spans", "some", "x.py"], r"Invalid value for '--spans'"),
    ],
)
def test_wrong_usage(words: list[str], told: str, run: Run) -> None:
    """Exit code 2, and what is wrong with it, before anything runs."""
    said = run(*MFU, *words)
    assert said.returncode == 2
    assert re.search(told, said.stderr), said.stderr


def test_a_receiver_that_is_none_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    """A wrong endpoint ends with one line before the program starts, not after its first step."""
    said = run(*MFU, write(tmp_path / "train.py", "print('ran')"), OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318")
    assert (said.returncode, said.stdout) == (2, "")
    assert "must be an http or https URL" in said.stderr


def test_under_torchrun(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    """Two ranks, each measured by itself and joined by one run id; rank 0 alone prints."""
    script = write(
        tmp_path / "train.py",
        TRAINING.replace("from torch import nn", "from torch import nn\nimport torch.distributed as dist")
        .replace("model =", "dist.init_process_group('gloo')\nmodel =")
        .replace("optimizer =", "model = nn.parallel.DistributedDataParallel(model)\noptimizer =")
        + "dist.destroy_process_group()\n"
        + PATIENT,
    )
    said = run(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", *MFU,
        "--spans", "all", script, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("DistributedDataParallel: 5 steps") == 1
    assert [span["mfu.model.flop"] for span in receiver.named("mfu.step")] == [TRAIN] * 10
    assert len(receiver.named("mfu.run")) == 2


def test_interrupted(tmp_path: Path) -> None:
    """SIGINT ends it as it ends Python: by the signal, after the program's own clean-up."""
    script = write(
        tmp_path / "waits.py",
        "import signal\ntry:\n    print('ready', flush=True)\n    signal.pause()\nfinally:\n    print('cleaned up')\n",
    )
    with subprocess.Popen([*MFU, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT
    assert out == "cleaned up\n"
    assert "KeyboardInterrupt" in err
    assert "mfu_sdk" not in err.replace("mfu run:", "")
