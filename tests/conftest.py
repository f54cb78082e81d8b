"""What every test gets: errors of ours raised, a cache of its own, no exporter, and proof that nothing leaked.

And what no test depends on: how fast the machine is, what its environment says, what its user has kept of earlier runs.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from mfu_sdk import testing

from . import ports

# A shell's background jobs ignore Ctrl-C, and so would every program that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, however long a busy machine takes for one of them; what these examples do not find is
# looked for by hand: pytest --hypothesis-profile=search.
SLOW = [HealthCheck.too_slow]
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("search", deadline=None, max_examples=1000, suppress_health_check=SLOW, print_blob=True)
settings.load_profile("suite")

SET_OUTSIDE = ("MFU_", "OTEL_", "TORCHELASTIC_", "SLURM_")
LAUNCHED = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
DRAWN = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"}
"""What sets the width and the colours of what commands print."""


@pytest.fixture(scope="session", autouse=True)
def _of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For what several tests share, a fixture of a module's and the programs it starts: nothing that was set outside.

    A user's cache has baselines and calibrations of earlier runs, which a run of the same name goes on from.
    """
    kept = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        for variable in tuple(os.environ):
            ours = variable.startswith(SET_OUTSIDE) and variable != "MFU_TEST_EXAMPLES"
            if ours or variable in LAUNCHED | DRAWN or variable.lower().endswith("_proxy"):
                patch.delenv(variable)
        patch.setenv("MFU_CACHE_DIR", str(kept / "cache"))
        patch.setenv("MFU_RECORDER_DIR", str(kept / "recorder"))
        patch.setenv("XDG_STATE_HOME", str(kept / "state"))
        yield


SET_S = 0.005
"""A clock that is corrected as it runs does not move by so much in a test's time."""


@pytest.fixture(scope="session")
def while_clock_stands() -> Callable[[Callable[[], Any]], Any]:
    """Gives what some work returns, done anew where the machine's clock was set meanwhile: torch times exchanges by it.

    What the product makes of such a moment has tests of its own; a measurement that it fell into shows nothing.
    """

    def done(work: Callable[[], Any]) -> Any:
        for _ in range(2):
            ahead_s = time.time() - time.perf_counter()
            told = work()
            if abs(time.time() - time.perf_counter() - ahead_s) < SET_S:
                return told
        return work()

    return done


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port of loopback that nobody has, nor its successor, and that nobody else is given."""
    return ports.free_port


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MFU_GUARD", "raise")
    monkeypatch.setenv("MFU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MFU_RECORDER_DIR", str(tmp_path / "recorder"))
    # Settings that a test makes itself know of no variable of ours.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-state")))


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    yield
    assert testing.leaked_hooks() == []
