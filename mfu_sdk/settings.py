"""Every option that has an MFU_* variable, read once, validated, documented.

`OPTIONS` is the one table, and the reference page is made from it. Variables of the OpenTelemetry specification
(OTEL_EXPORTER_OTLP_*, OTEL_SDK_DISABLED, OTEL_RESOURCE_ATTRIBUTES, …) mean what that says: see `export.destination`.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mfu_sdk.errors import ConfigurationError

Spans = Literal["auto", "all", "windows", "off"]
_SPANS: dict[str, Spans] = {"auto": "auto", "all": "all", "windows": "windows", "off": "off"}
GenAi = Literal["off", "chat", "text_completion", "generate_content", "embeddings"]
_GEN_AI: dict[str, GenAi] = {
    "off": "off",
    "chat": "chat",
    "text_completion": "text_completion",
    "generate_content": "generate_content",
    "embeddings": "embeddings",
}
_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)
_Rule = tuple[Callable[[float], bool], str]
_SHARE: _Rule = (lambda number: 0 < number < 1, "a number between 0 and 1")
_ABOVE_ZERO: _Rule = (lambda number: 0 < number < math.inf, "a number above 0")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its variable, its default as one would write it, what it may be, and what it does."""

    variable: str
    default: str
    values: str
    brief: str


OPTIONS: tuple[Option, ...] = (
    Option("MFU_ENABLED", "1", "0 or 1", "0 makes every call of the SDK a no-op"),
    Option("MFU_GUARD", "log", "log or raise", "raise lets errors of the SDK itself through, for tests"),
    Option(
        "MFU_CALIBRATE",
        "auto",
        "auto or off",
        "off forbids measuring the peak when a monitor starts without a cached one",
    ),
    Option(
        "MFU_PROFILE",
        "auto",
        "auto or off",
        "auto: on a processor the operators of every eighth step are timed, while that takes at most 0.5 % of the "
        "run, for the waterfall's host gap and kernels; off: never",
    ),
    Option(
        "MFU_LIVE",
        "0",
        "0 or 1",
        "1: a monitor shows its figures while it runs, in a line on the terminal: rank 0 does, and nothing in a pipe",
    ),
    Option(
        "MFU_DRIFT",
        "auto",
        "auto or off",
        "auto: tell when steps have become slower or faster than the run's own baseline; off: never",
    ),
    Option(
        "MFU_DRIFT_TOLERANCE",
        "0.02",
        "a number between 0 and 1",
        "the relative change of a run's speed that nobody is told of",
    ),
    Option(
        "MFU_DRIFT_ALARMS_PER_WEEK",
        "1",
        "a number above 0",
        "false alarms of drift that a fleet of MFU_DRIFT_STREAMS processes may have in a week, at most",
    ),
    Option("MFU_DRIFT_STREAMS", "1000", "a whole number above 0", "processes that share that budget"),
    Option(
        "MFU_CACHE_DIR",
        "the user's cache directory",
        "a directory",
        "where calibrations and the baselines of drift are kept",
    ),
    Option(
        "MFU_SPANS",
        "auto",
        "auto, all, windows or off",
        "auto: windows always, a span for every step while that is at most 2 a second, else 1 in N with the ratio "
        "on the span; all: every step; windows: no step spans; off: metrics and the run's span only",
    ),
    Option(
        "MFU_GEN_AI",
        "off",
        "off, chat, text_completion, generate_content or embeddings",
        "anything but off: requests also carry OpenTelemetry's `gen_ai.*` names (in development there), with this "
        "as `gen_ai.operation.name`",
    ),
    Option("MFU_RUN_ID", "a new UUID", "a string", "the run's id, to join restarts and ranks"),
    Option("MFU_RUN_ATTEMPT", "0", "a whole number", "how often the run was restarted"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The SDK's options. Raises `ConfigurationError` for a value that breaks its rule."""

    enabled: bool = True
    calibrate: Literal["auto", "off"] = "auto"
    profile: Literal["auto", "off"] = "auto"
    live: bool = False
    drift: Literal["auto", "off"] = "auto"
    drift_tolerance: float = 0.02
    drift_alarms_per_week: float = 1.0
    drift_streams: int = 1000
    cache_dir: Path | None = None
    spans: Spans = "auto"
    gen_ai: GenAi = "off"
    run_id: str | None = None
    run_attempt: int = 0

    def __post_init__(self) -> None:
        if self.run_attempt < 0:
            raise ConfigurationError(f"run_attempt={self.run_attempt}: must not be negative; use 0 for the first")
        for name, number, (holds, rule) in (
            ("drift_tolerance", self.drift_tolerance, _SHARE),
            ("drift_alarms_per_week", self.drift_alarms_per_week, _ABOVE_ZERO),
            ("drift_streams", self.drift_streams, _ABOVE_ZERO),
        ):
            if not holds(number):
                raise ConfigurationError(f"{name}={number}: must be {rule}")
        for name, value, allowed in (
            ("calibrate", self.calibrate, ("auto", "off")),
            ("profile", self.profile, ("auto", "off")),
            ("drift", self.drift, ("auto", "off")),
            ("spans", self.spans, ("auto", "all", "windows", "off")),
            ("gen_ai", self.gen_ai, tuple(_GEN_AI)),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{name}={value!r}: must be one of {', '.join(allowed)}")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Settings as the environment gives them. Raises `ConfigurationError`, naming the variable."""
        env = os.environ if env is None else env
        attempt = env.get("MFU_RUN_ATTEMPT", "0")
        # Read where it is used (`guard.shield`), because it must work before there are settings; checked here.
        _one_of(env, "MFU_GUARD", "log", {"log": "log", "raise": "raise"})
        if not attempt.isascii() or not attempt.isdigit():
            raise ConfigurationError(f"MFU_RUN_ATTEMPT={attempt!r}: must be a whole number; unset it for 0")
        cache_dir = env.get("MFU_CACHE_DIR")
        return cls(
            enabled=_one_of(env, "MFU_ENABLED", "1", {"1": True, "0": False, "true": True, "false": False}),
            calibrate=_one_of(env, "MFU_CALIBRATE", "auto", {"auto": "auto", "off": "off"}),
            profile=_one_of(env, "MFU_PROFILE", "auto", {"auto": "auto", "off": "off"}),
            live=_one_of(env, "MFU_LIVE", "0", {"1": True, "0": False, "true": True, "false": False}),
            drift=_one_of(env, "MFU_DRIFT", "auto", {"auto": "auto", "off": "off"}),
            drift_tolerance=_number(env, "MFU_DRIFT_TOLERANCE", float, "0.02", _SHARE),
            drift_alarms_per_week=_number(env, "MFU_DRIFT_ALARMS_PER_WEEK", float, "1", _ABOVE_ZERO),
            drift_streams=_number(env, "MFU_DRIFT_STREAMS", int, "1000", _ABOVE_ZERO),
            cache_dir=Path(cache_dir).expanduser() if cache_dir else None,
            spans=_one_of(env, "MFU_SPANS", "auto", _SPANS),
            gen_ai=_one_of(env, "MFU_GEN_AI", "off", _GEN_AI),
            run_id=env.get("MFU_RUN_ID") or None,
            run_attempt=int(attempt),
        )

    def resolved_cache_dir(self, env: Mapping[str, str] | None = None) -> Path:
        """Where calibrations are kept: the option, else the platform's per-user cache directory."""
        env = os.environ if env is None else env
        if self.cache_dir is not None:
            return self.cache_dir
        if base := env.get("XDG_CACHE_HOME"):
            return Path(base) / "mfu_sdk"
        return Path.home() / ".cache" / "mfu_sdk"


def _one_of(env: Mapping[str, str], variable: str, default: str, allowed: Mapping[str, _T]) -> _T:
    value = env.get(variable, "").strip().lower() or default
    if value not in allowed:
        raise ConfigurationError(f"{variable}={value!r}: must be one of {', '.join(allowed)}; unset it for {default}")
    return allowed[value]


def _number(
    env: Mapping[str, str], variable: str, kind: Callable[[str], _Number], default: str, rule: _Rule
) -> _Number:
    value = env.get(variable, "").strip() or default
    holds, words = rule
    try:
        number = kind(value)
        if holds(number):
            return number
    except ValueError:
        pass
    whole = " and whole" if kind is int else ""
    raise ConfigurationError(f"{variable}={value!r}: must be {words}{whole}; unset it for {default}")
