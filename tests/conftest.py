"""What every test gets: errors of ours raised, a cache of its own, no exporter, and proof that nothing leaked."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfu_sdk import testing

# A shell's background jobs ignore Ctrl-C, and so would every program that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MFU_GUARD", "raise")
    monkeypatch.setenv("MFU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MFU_RECORDER_DIR", str(tmp_path / "recorder"))
    # Settings that a test makes itself know of no variable of ours.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-state")))
    for variable in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_RESOURCE_ATTRIBUTES",
        "MFU_RUN_ID",
        "MFU_SPANS",
        "MFU_ENABLED",
    ):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    yield
    assert testing.leaked_hooks() == []
