"""Options and their variables."""

from pathlib import Path

import pytest

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.settings import OPTIONS, Settings


def test_defaults() -> None:
    """An empty environment gives the documented defaults."""
    assert Settings.from_env({}) == Settings()
    assert Settings().spans == "auto"


def test_every_variable_is_read() -> None:
    """Each documented variable changes what is read."""
    changed = {
        "MFU_ENABLED": "0",
        "MFU_CALIBRATE": "off",
        "MFU_PROFILE": "off",
        "MFU_LIVE": "1",
        "MFU_DRIFT": "off",
        "MFU_DRIFT_TOLERANCE": "0.05",
        "MFU_DRIFT_ALARMS_PER_WEEK": "0.5",
        "MFU_DRIFT_STREAMS": "64",
        "MFU_CACHE_DIR": "/somewhere",
        "MFU_SPANS": "all",
        "MFU_OVERHEAD_BUDGET": "off",
        "MFU_GEN_AI": "chat",
        "MFU_PROVIDER_ENDPOINT": "https://mfu.example.org",
        "MFU_PROVIDER_PROTOCOL": "grpc",
        "MFU_PROVIDER_HEADERS": "a=b",
        "MFU_PROVIDER_TIMEOUT": "3",
        "MFU_PROVIDER_COMPRESSION": "none",
        "MFU_PROVIDER_CERTIFICATE": "/ca.pem",
        "MFU_PROVIDER_CLIENT_CERTIFICATE": "/me.pem",
        "MFU_PROVIDER_CLIENT_KEY": "/me.key",
        "MFU_PROVIDER_MODEL_CLASS": "1",
        "MFU_PROMETHEUS_PORT": "9464",
        "MFU_PROMETHEUS_HOST": "0.0.0.0",
        "MFU_RECORDER": "off",
        "MFU_RECORDER_DIR": "/somewhere/else",
        "MFU_RUN_ID": "run-7",
        "MFU_RUN_ATTEMPT": "3",
        "MFU_ALLOCATION_ID": "slot-4",
    }
    # MFU_GUARD is read by the guard itself.
    assert set(changed) | {"MFU_GUARD"} == {option.variable for option in OPTIONS}
    for variable, value in changed.items():
        assert Settings.from_env({variable: value}) != Settings(), variable


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MFU_ENABLED", "maybe"),
        ("MFU_GUARD", "shout"),
        ("MFU_SPANS", "some"),
        ("MFU_OVERHEAD_BUDGET", "-1"),
        ("MFU_OVERHEAD_BUDGET", "much"),
        ("MFU_GEN_AI", "1"),
        ("MFU_RECORDER", "maybe"),
        ("MFU_PROVIDER_TIMEOUT", "soon"),
        ("MFU_PROVIDER_COMPRESSION", "zstd"),
        ("MFU_PROVIDER_PROTOCOL", "http/json"),
        ("MFU_PROMETHEUS_PORT", "65536"),
        ("MFU_PROMETHEUS_PORT", "9464.5"),
        ("MFU_CALIBRATE", "on"),
        ("MFU_PROFILE", "all"),
        ("MFU_DRIFT", "on"),
        ("MFU_DRIFT_TOLERANCE", "2"),
        ("MFU_DRIFT_TOLERANCE", "two"),
        ("MFU_DRIFT_ALARMS_PER_WEEK", "nan"),
        ("MFU_DRIFT_STREAMS", "0"),
        ("MFU_DRIFT_STREAMS", "1.5"),
        ("MFU_RUN_ATTEMPT", "-1"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str) -> None:
    """The error names the variable and the value."""
    with pytest.raises(ConfigurationError, match=f"{variable}='{value}'"):
        Settings.from_env({variable: value})


def test_cache_directory() -> None:
    """The option first, then XDG's variable, then the home directory."""
    assert Settings(cache_dir=Path("/a")).resolved_cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/a")
    assert Settings().resolved_cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/mfu_sdk")
    assert Settings().resolved_cache_dir({}) == Path.home() / ".cache/mfu_sdk"


def test_recorder_directory() -> None:
    """The same for flight recorders, in the state directory."""
    assert Settings(recorder_dir=Path("/a")).resolved_recorder_dir({"XDG_STATE_HOME": "/x"}) == Path("/a")
    assert Settings().resolved_recorder_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/mfu_sdk")
    assert Settings().resolved_recorder_dir({}) == Path.home() / ".local/state/mfu_sdk"


@pytest.mark.parametrize("name", ["drift_tolerance", "drift_alarms_per_week", "drift_streams"])
def test_numbers_of_drift_given_in_code(name: str) -> None:
    """The same rules hold where no variable was read."""
    with pytest.raises(ConfigurationError, match=f"{name}=0: must be a number"):
        Settings(**{name: 0})  # type: ignore[arg-type]
