"""What importing mfu_sdk brings into a process, and what it offers."""

import subprocess
import sys

import pytest

import mfu_sdk


def test_import_loads_nothing_heavy() -> None:
    """`import mfu_sdk` loads no package beside the standard library: not torch, not OpenTelemetry, not numpy."""
    code = "import sys; before = set(sys.modules); import mfu_sdk; print(*sorted(set(sys.modules) - before))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    roots = {name.partition(".")[0] for name in said.stdout.split()}
    assert "mfu_sdk" in roots
    assert roots - set(sys.stdlib_module_names) == {"mfu_sdk"}


def test_public_names() -> None:
    """The public names are exactly these: adding or removing one is a decision."""
    assert mfu_sdk.__all__ == [
        "Load",
        "calibrate",
        "count",
        "expect",
        "inference",
        "monitor",
        "peaks",
        "register_flops",
    ]


@pytest.mark.parametrize("name", mfu_sdk.__all__)
def test_each_name_resolves(name: str) -> None:
    """Each public name is a callable with a docstring, and `dir` shows it."""
    assert callable(getattr(mfu_sdk, name))
    assert getattr(mfu_sdk, name).__doc__
    assert name in dir(mfu_sdk)


def test_unknown_name() -> None:
    """A name that we do not have is an AttributeError like any module's."""
    with pytest.raises(AttributeError, match=r"module 'mfu_sdk' has no attribute 'profile'"):
        _ = mfu_sdk.profile
