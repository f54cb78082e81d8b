"""The firewall between our errors and the user's code."""

import logging

import pytest

from mfu_sdk import guard
from mfu_sdk.guard import shield


@pytest.fixture(autouse=True)
def _fresh_warnings() -> None:
    guard._said.clear()


def test_raises_for_tests() -> None:
    """Under MFU_GUARD=raise, which every test here has, an error goes through."""
    with pytest.raises(ValueError, match="ours"), shield("test"):
        raise ValueError("ours")


def test_swallows_and_says_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise it stays inside, and is logged once for its place and type."""
    monkeypatch.delenv("MFU_GUARD")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with shield("here") as here:
                raise ValueError("ours")
    assert here.failed
    assert len(caplog.records) == 1
    assert "here failed" in caplog.text


def test_interrupts_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is the user's, whatever the mode."""
    monkeypatch.delenv("MFU_GUARD")
    with pytest.raises(KeyboardInterrupt), shield("here"):
        raise KeyboardInterrupt
