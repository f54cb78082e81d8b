"""A monitor that shows its figures while it runs, on a real terminal and in a pipe."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.records import Peaks, Rate

PEAKS = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
PROGRAM = """
import torch
import mfu_sdk as mfu
from mfu_sdk.records import Peaks, Rate

peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
model = torch.nn.Linear(64, 32)
with mfu.monitor(model, name="small", peaks=peaks) as run:
    for index in range(40):
        with run.step(tokens=16):
            model(torch.randn(16, 64)).sum().backward()
        if index == 20:
            print("said by the program")
print(run.summary().steps)
"""


def run_on(stderr: int, rank: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=os.environ
        | {
            "MFU_LIVE": "1",
            "TERM": "xterm-256color",
            "COLUMNS": "160",
            "RANK": rank,
            "WORLD_SIZE": "2",
            "MFU_RUN_ID": "a-run",
        },
        stdout=stderr,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/ptmx").exists(), reason="needs pseudo-terminals")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_line_on_a_terminal(rank: str) -> None:
    """MFU_LIVE=1: the line is there, the program's own words are above it, and it ends with the run's last word.

    Of several ranks only the first has one: they share the terminal.
    """
    ours, theirs = pty.openpty()
    try:
        assert run_on(theirs, rank).returncode == 0
        os.close(theirs)
        written = b""
        while True:
            # Linux says that the other end is closed by an error.
            try:
                read = os.read(ours, 65536)
            except OSError:
                break
            written += read
    finally:
        os.close(ours)
    said = written.decode()
    if rank != "0":
        assert said == "said by the program\r\n40\r\n"
        return
    assert "said by the program\r\n" in said
    last = said.rpartition("small")[2]
    assert "step 40" in last
    assert "MFU" in last
    assert "tokens/s" in last
    assert last.rstrip().endswith("40")


def test_nothing_in_a_pipe() -> None:
    """MFU_LIVE=1 where standard error is no terminal: not a byte."""
    read, write = os.pipe()
    try:
        assert run_on(write).returncode == 0
        os.close(write)
        assert os.read(read, 65536) == b"said by the program\n40\n"
    finally:
        os.close(read)


def test_asked_for_in_a_pipe_it_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """`run.live()` in a notebook or a log: the line as it is now; before and after the run nothing."""
    model = nn.Linear(4, 4)
    run = mfu.monitor(model, name="small", peaks=PEAKS)
    run.live()
    with run:
        for _ in range(4):
            with run.step():
                model(torch.randn(2, 4))
        run.live()
    run.live()
    assert capsys.readouterr().out.startswith("small · step 4 · MFU ")
