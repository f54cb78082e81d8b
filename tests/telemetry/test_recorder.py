"""The flight recorder in a living process: what it writes, where, and that it harms nothing where it cannot."""

import dataclasses
import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mfu_sdk import guard
from mfu_sdk.export import flight, flight_file, shelf
from mfu_sdk.export.flight_file import FlightFile
from mfu_sdk.export.recorder import Recorder
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.settings import Settings

from .conftest import EPOCH_NS, IDENTITY, make_step

WHO = {"mfu.run.id": "run-7"}


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch):
    """Every test hears its own warnings."""
    monkeypatch.setattr(guard, "_said", set())


@pytest.fixture
def place(tmp_path):
    return tmp_path / "of the user" / "recorder"


@pytest.fixture
def opened(place):
    """Opens recorders in `place`, and deletes their files."""
    made = []

    def open_one(identity=IDENTITY, **changes):
        found = Recorder.open(identity, WHO, Settings(**({"recorder_dir": place} | changes)))
        made.append(found)
        return found

    yield open_one
    for recorder in made:
        if recorder is not None:
            recorder.disown()


def read(recorder):
    return flight.read(recorder.path.read_bytes(), "x")


def indices(recorder):
    return [entry.step.index for entry in read(recorder).entries]


@pytest.mark.parametrize("mapped", [True, False])
def test_what_is_appended_is_there(opened, monkeypatch, mapped):
    """A step is in the file as soon as `step` has returned, through a mapping or by system calls."""
    monkeypatch.setattr(
        flight_file, "MAPPED", {flight_file.file_system(Path("/"))} | flight_file.MAPPED if mapped else ()
    )
    recorder = opened()
    assert (recorder._file.mapped is not None) is mapped
    assert [recorder.step(make_step(index)) for index in range(3)] == [1, 2, 3]
    found = read(recorder)
    assert [entry.step for entry in found.entries] == [make_step(index) for index in range(3)]
    assert (found.identity, found.start_unix_ns, found.mode) == (WHO, EPOCH_NS, "auto")
    # Either way the same bytes.
    at, part = flight.pack_step(2, flight.row_of(make_step(1), 0))
    assert recorder.path.read_bytes()[at : at + len(part)] == part


def test_modes(opened, place):
    """The directory and the file are their user's alone; the file has its full size and its blocks from the start."""
    recorder = opened()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    found = recorder.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_size == flight.FILE_BYTES
    assert found.st_blocks * 512 >= flight.FILE_BYTES


def test_file_names(opened):
    """A file is named by run, attempt, rank and process; a run id cannot name another directory."""
    recorder = opened(dataclasses.replace(IDENTITY, run_id="../../etc/x"))
    assert recorder.path.name.startswith(f"_etc_x-a1-r3-p{os.getpid()}-")
    assert opened().path != opened().path


def test_the_oldest_give_way(opened):
    """Past 8,192 steps the newest are there."""
    recorder = opened()
    row = flight.row_of(make_step(0), None)
    for index in range(8200):
        recorder.append([row._replace(number=index)])
    assert indices(recorder) == list(range(8, 8200))
    assert recorder.missing == 8192


def test_threads(opened):
    """Steps that end in several threads at once lie in slots of their own."""
    recorder = opened()

    def work(start):
        for index in range(start, start + 500):
            recorder.step(make_step(index))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(indices(recorder)) == [start + n for start in (0, 1000, 2000, 3000) for n in range(500)]


def test_a_forked_child_writes_nothing(opened):
    """The child's recorder is off, and neither its life nor its end holds or takes the file."""
    recorder = opened()
    recorder.step(make_step(0))
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        recorder.step(make_step(1))
        recorder.retire()
        os.read(wait, 1)
        os._exit(0)
    recorder.step(make_step(2))
    assert indices(recorder) == [0, 2]
    assert taken_elsewhere(recorder.path) == "live"
    recorder.retire()
    # The child lives on, as a data loader's worker does that has lost its parent.
    assert taken_elsewhere(recorder.path) == "free"
    os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(wait)
    os.close(go)


def taken_elsewhere(path):
    """Whether another process could have the file: "live" or "free"."""
    program = (
        "import sys; from pathlib import Path; from mfu_sdk.export.flight_file import FlightFile\n"
        "print('live' if FlightFile.take(Path(sys.argv[1])) is None else 'free')"
    )
    return subprocess.check_output([sys.executable, "-c", program, str(path)], text=True, timeout=300).strip()


def test_owned_while_it_lives(opened):
    """No one takes the file of a live run, this process neither; once the run lets go of it, anyone may."""
    recorder = opened()
    recorder.step(make_step(0))
    assert FlightFile.take(recorder.path) is None
    assert taken_elsewhere(recorder.path) == "live"
    recorder.retire()
    assert taken_elsewhere(recorder.path) == "free"


def test_delivered_and_gone(collector, identity, step, summary, place):
    """A run whose spans have all arrived leaves no file."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    telemetry = Telemetry.open(identity, Settings(recorder_dir=place), env=env, unix_ns=lambda: EPOCH_NS)
    for index in range(20):
        telemetry.step(step(index))
    assert len(indices(telemetry.recorder)) == 20
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert list(place.iterdir()) == []


def test_arrived_is_marked(collector, identity, step, place):
    """What the collector has is marked while the run goes on; what came after is not."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    telemetry = Telemetry.open(identity, Settings(recorder_dir=place, spans="all"), env=env, unix_ns=lambda: EPOCH_NS)
    for index in range(3):
        telemetry.step(step(index))
    assert telemetry.flush(120.0)
    telemetry.step(step(3))
    found = read(telemetry.recorder).entries
    assert [entry.arrived for entry in found] == [True, True, True, False]
    assert [(entry.first, entry.kept.reason) for entry in found[:3]] == [(0, "all")] * 3
    assert telemetry.stop(120.0)


def test_refused_and_kept(collector, identity, step, summary, place, caplog):
    """What a collector refuses, or is not there for, stays in the file when the run ends, and a line says so."""
    collector.status = 401
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    telemetry = Telemetry.open(identity, Settings(recorder_dir=place), env=env, unix_ns=lambda: EPOCH_NS)
    telemetry.step(step(0))
    telemetry.close(summary)
    telemetry.flush(120.0)
    (left,) = place.iterdir()
    found = flight.read(left.read_bytes(), "x")
    assert [(entry.step.index, entry.arrived) for entry in found.entries] == [(0, False)]
    assert (found.end.steps, found.end.model_flops, found.run_arrived) == (3, 40.0, False)
    assert f"1 steps did not arrive; `mfu replay {left}` delivers them" in caplog.text


@pytest.mark.parametrize("changes", [{"recorder": "off"}, {"spans": "off"}])
def test_off(opened, place, changes):
    """MFU_RECORDER=off, and MFU_SPANS=off, which has no windows to deliver: no file, no directory."""
    assert opened(**changes) is None
    assert not place.exists()


def test_metrics_alone(identity, collector, place):
    """Where no spans are sent there is nothing that could be replayed."""
    env = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.url}/v1/metrics"}
    telemetry = Telemetry.open(identity, Settings(recorder_dir=place), env=env)
    assert telemetry.recorder is None
    assert telemetry.stop(1.0)


# --- what can be in its way ----------------------------------------------------------------------------------------


def test_a_full_disk(opened, place, monkeypatch, caplog):
    """No room: off before anything is mapped, with one warning, and no half a file stays."""

    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert opened() is None
    assert opened() is None
    assert list(place.iterdir()) == []
    (said,) = [record.getMessage() for record in caplog.records]
    assert "recorder: off" in said
    assert "No space left on device" in said
    assert "MFU_RECORDER=off" in said


@pytest.mark.parametrize("code", sorted(flight_file.UNSUPPORTED))
def test_a_file_system_without_allocation(opened, monkeypatch, code):
    """Where blocks cannot be allocated by a call, zeros take them."""

    def refuse(descriptor, offset, size):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    recorder = opened()
    assert recorder.path.stat().st_blocks * 512 >= flight.FILE_BYTES
    recorder.step(make_step(0))
    assert indices(recorder) == [0]


def test_the_first_pass_meets_no_new_page(place):
    """The pages of a mapped file are there when it is opened: no step waits for the system to bring one in."""
    resource = pytest.importorskip("resource")
    place.mkdir(parents=True, exist_ok=True)
    file = FlightFile.create(place / "run.mfurec", flight.FILE_BYTES)
    if file.mapped is None:
        pytest.skip("this file system is not mapped")
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (5, 14):
        pytest.skip("this system cannot populate a mapping for writing")
    pages = range(0, flight.FILE_BYTES, 4096)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for at in pages:
        file.mapped[at] = 1
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < len(pages) / 10


def test_a_system_that_cannot_populate(place, monkeypatch):
    """An older one says that it does not know the word: the file is as good without."""
    monkeypatch.setattr(flight_file, "_POPULATE_WRITE", 10_000)
    place.mkdir(parents=True, exist_ok=True)
    file = FlightFile.create(place / "run.mfurec", flight.FILE_BYTES)
    file.write(0, b"mfu")
    assert file.read(3) == b"mfu"


LIMITED = """
    import resource, sys
    from mfu_sdk.export.recorder import Recorder
    from mfu_sdk.settings import Settings
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from conftest import IDENTITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    assert Recorder.open(IDENTITY, {}, Settings(recorder_dir=Path(sys.argv[2]))) is None
"""


def test_a_quota(request, place):
    """The system's own refusal of so large a file, in a process of its own: one warning, and it goes on."""
    program = "\n".join(line[4:] for line in LIMITED.splitlines())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(request.path.parent), str(place)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(place.iterdir()) == []


def test_no_such_place(opened, tmp_path, caplog):
    """A directory that cannot be made is named in the warning."""
    (tmp_path / "file").write_text("")
    assert opened(recorder_dir=tmp_path / "file" / "recorder") is None
    assert f"off: {tmp_path / 'file'}" in caplog.text
    assert "Not a directory" in caplog.text


def test_nobody_at_home(opened, monkeypatch, caplog):
    """A user without a home directory, as in some containers, gets a warning and no recorder."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert opened(recorder_dir=None) is None
    assert "off: Could not determine home directory" in caplog.text


def test_a_network_file_system(opened, place, monkeypatch, caplog):
    """A server that is lost would stop or end the user's process: no recorder there, and the remedy is told."""
    monkeypatch.setattr(flight_file, "file_system", lambda directory: "nfs4")
    assert opened() is None
    assert "lies on nfs4" in caplog.text
    assert "name a local directory in MFU_RECORDER_DIR" in caplog.text


def test_a_write_that_fails(opened, monkeypatch, caplog):
    """An error in the middle of a run turns the recorder off, with one warning; the run's steps go on."""
    monkeypatch.setenv("MFU_GUARD", "log")
    monkeypatch.setattr(flight_file, "MAPPED", ())
    recorder = opened()

    def full(descriptor, data, at):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert [recorder.step(make_step(index)) for index in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1
    assert "recorder failed and is left out from here on" in caplog.text


def test_file_systems():
    """The nearest mount's kind is told, as the system lists it."""
    assert flight_file.file_system(Path("/proc/self")) == "proc"
    assert flight_file.file_system(Path("/dev/shm")) == "tmpfs"


# --- what earlier ones have left -----------------------------------------------------------------------------------


def leave(place, count=1, start=0):
    """Files of processes that are gone, the oldest first."""
    place.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(start, start + count):
        path = place / f"gone-{number}.mfurec"
        path.write_bytes(flight.pack_header(WHO, EPOCH_NS, "auto"))
        os.utime(path, (1_700_000_000 + number,) * 2)
        made.append(path)
    return made


def test_offered(opened, place, caplog):
    """The next start in the same directory says once what was left, with the command."""
    (left,) = leave(place)
    for _ in range(2):
        opened(dataclasses.replace(IDENTITY, local_rank=0))
    assert [record.getMessage() for record in caplog.records] == [
        f"mfu_sdk: recorder: 1 earlier run here ended before all was told: `mfu replay {left}` delivers the rest "
        "(--otlp URL names the collector)"
    ]


def test_offered_by_one(opened, place, caplog):
    """Of the ranks of a host the first speaks; a file that a live run has is not offered."""
    opened(dataclasses.replace(IDENTITY, local_rank=0)).step(make_step(0))
    leave(place)
    opened(dataclasses.replace(IDENTITY, local_rank=1))
    assert caplog.records == []
    opened(dataclasses.replace(IDENTITY, local_rank=0))
    assert "1 earlier run here" in caplog.text


def test_bounded(opened, place, caplog):
    """Of more than 32 files the oldest go; what was never written goes silently, and other files stay."""
    leave(place, shelf.MOST_FILES + 3)
    (place / "empty.mfurec").write_bytes(b"")
    (place / "notes.txt").write_text("mine")
    recorder = opened(dataclasses.replace(IDENTITY, local_rank=0))
    kept = {path.name for path in place.iterdir()} - {recorder.path.name, "notes.txt"}
    assert kept == {f"gone-{number}.mfurec" for number in range(3, shelf.MOST_FILES + 3)}
    assert "32 earlier runs here" in caplog.text
    assert f"`mfu replay {place}/*.mfurec`" in caplog.text
