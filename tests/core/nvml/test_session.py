"""Sessions with NVML: what is gone, closed, forked or forbidden answers None and raises nothing."""

import ctypes
import ctypes.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from mfu_sdk.peak.nvml import (
    Counters,
    Health,
    Identity,
    Link,
    Nvml,
    NvmlError,
    Port,
    State,
    Witness,
    counters,
    link,
    open_gpu,
    port,
    process_use,
)

from .conftest import WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc

GONE = {"lost": 15, "not loaded": 9, "uninitialized": 1}


@pytest.mark.parametrize("code", GONE.values(), ids=GONE)
def test_driver_gone(fake: Fake, code: int) -> None:
    """A driver that goes in the middle of a run answers nothing and raises nothing; a new session finds it again."""
    session = Nvml.open()
    fake.set(0, WHOLE, gpm=1, cycles=0, held0=10**9, held_at=5, energy=7, users=0, links=18, ancestor1=30)
    gpu, witness = found(session), Witness.of(found(session))
    assert witness is not None
    witness.take()
    assert gpu.state().sm_clock_mhz == 1755
    fake.library.fake_broken(code)
    assert gpu.state() == State(None, None, None, None, None, None, None)
    assert gpu.identity() == Identity(**dict.fromkeys(Identity.__slots__))
    assert gpu.health() == Health(None, None, None, None, None, None)
    assert counters(gpu, lambda: 3.0) == Counters({}, None, 3.0)
    assert process_use(gpu) is None
    assert port(gpu) == Port(None, None, None, None)
    assert link(gpu, gpu) == Link(None, None)
    assert witness.take() is None
    assert Witness.of(gpu) is None
    assert session.gpu("GPU-00009") is None
    with pytest.raises(NvmlError):
        Nvml.open()
    session.close()
    fake.library.fake_broken(0)
    assert (fake.sessions, fake.samples) == (0, 0)
    with Nvml.open() as again:
        assert found(again).state().sm_clock_mhz == 1755


def test_gone_for_a_moment(fake: Fake, nvml: Nvml) -> None:
    """A call that failed once does not spoil the next."""
    gpu = found(nvml)
    fake.library.fake_broken(10)
    assert gpu.state().sm_clock_mhz is None
    fake.library.fake_broken(0)
    assert gpu.state().sm_clock_mhz == 1755


def test_unknown_uuid(nvml: Nvml) -> None:
    """A UUID that NVML does not know is no device."""
    assert nvml.gpu("GPU-ffff") is None


def test_sessions_are_counted(fake: Fake) -> None:
    """Sessions end on their own; a closed one answers None, twice closed is once closed."""
    first, second = Nvml.open(), Nvml.open()
    gpu = found(first)
    assert fake.sessions == 2
    first.close()
    first.close()
    assert fake.sessions == 1
    assert gpu.state().sm_clock_mhz is None
    assert found(second).state().sm_clock_mhz == 1755
    second.close()
    assert fake.sessions == 0


def test_threads(fake: Fake) -> None:
    """Threads that ask and close at the same time neither raise nor end the session twice."""
    others = Nvml.open()
    session = Nvml.open()
    gpu = found(session)
    begin = threading.Barrier(9)
    answers: list[int | None] = []

    def work(index: int) -> None:
        begin.wait()
        for step in range(200):
            answers.append(gpu.state().sm_clock_mhz)
            if step == 100 and index % 2:
                session.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    # A thread that raised would have fallen short.
    assert len(answers) == 8 * 200
    assert set(answers) == {1755, None}
    assert fake.sessions == 1
    others.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "Driver Not Loaded.*install NVIDIA's driver, or load its kernel module"),
        (4, "Insufficient Permissions.*let this user read and write /dev/nvidiactl"),
        (18, "version mismatch.*reboot"),
        (999, "Unknown Error.*install NVIDIA's driver, or reload it"),
    ],
)
def test_cannot_be_opened(fake: Fake, code: int, words: str) -> None:
    """What keeps NVML from opening is told with its own remedy, in one line."""
    fake.library.fake_broken(code)
    with pytest.raises(NvmlError, match=words) as raised:
        Nvml.open()
    assert "\n" not in str(raised.value)


def test_a_forbidden_gpu(fake: Fake) -> None:
    """A GPU that this user may not read is told from one that is not there; neither leaves a session behind."""
    fake.set(0, WHOLE, forbidden=1)
    with pytest.raises(NvmlError, match=r"GPU-00009 may not be read .*/dev/nvidia\*"), open_gpu("GPU-00009"):
        pass
    with pytest.raises(NvmlError, match=r"GPU-ffff is not seen .*nvidia-smi -L"), open_gpu("GPU-ffff"):
        pass
    fake.set(0, WHOLE, forbidden=0)
    with open_gpu("00009") as gpu:
        assert gpu.identity().uuid == "GPU-00009"
    assert fake.sessions == 0


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library there is one error, and it names the remedy."""
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    with pytest.raises(NvmlError, match=r"NVML Shared Library Not Found.*`utility`"):
        Nvml.open()


PROGRAM = """
import sys
import mfu_sdk.peak.nvml as nvml
assert "pynvml" not in sys.modules, "importing us loaded the binding"
with nvml.Nvml.open() as session:
    print(session.gpu("GPU-00009"), session.ask("nvmlSystemGetDriverVersion"))
"""


def test_found_by_the_loader(libraries: Callable[..., Path]) -> None:
    """In a process of its own the library is found as a driver's is, and nothing is loaded before it is opened."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries().parent)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "None 580.105.08\n"


FORKING = """
import ctypes, os
library = ctypes.CDLL("libnvidia-ml.so.1")
library.fake_name(0, -1, b"an H100")
for field, value in {"sm": 1755, "gpm": 1, "cycles": 100}.items():
    library.fake_set(0, -1, field.encode(), ctypes.c_longlong(value))
from mfu_sdk.peak.nvml import Nvml, Witness
session = Nvml.open()
gpu = session.gpu("GPU-00009")
witness = Witness.of(gpu)
assert gpu.state().sm_clock_mhz == 1755
# As a fork would find them when another thread is in the middle of a sample.
witness._lock.acquire()
session._lock.acquire()
child = os.fork()
if child == 0:
    asked = library.fake_calls()
    assert gpu.state().sm_clock_mhz is None and session.gpu("GPU-00009") is None
    assert witness.take() is None and Witness.of(gpu) is None
    witness.close()
    session.close()
    assert library.fake_calls() == asked, "the child asked through its parent's session"
    assert (library.fake_sessions(), library.fake_samples()) == (1, 2)
    with Nvml.open() as own:
        assert own.gpu("GPU-00009").state().sm_clock_mhz == 1755
    print("child", flush=True)
    os._exit(0)
witness._lock.release()
session._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert gpu.state().sm_clock_mhz == 1755 and witness.take() is None
session.close()
assert (library.fake_sessions(), library.fake_samples()) == (0, 0)
print("parent")
"""


def test_fork(libraries: Callable[..., Path]) -> None:
    """A forked child neither uses nor ends its parent's session, never waits for its locks, and may open its own."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries().parent)}
    done = subprocess.run(
        [sys.executable, "-c", FORKING], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "child\nparent\n"), done.stderr
