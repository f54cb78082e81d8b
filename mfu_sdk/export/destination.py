"""Where telemetry goes: the tenant's own collector and the provider's, each if it is named; this loads nothing heavy.

The tenant's is the one that the variables of the OTLP exporter specification name
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/): the signal's own before the general one, empty meaning
unset. The provider's is named by variables of ours with the same endings. There is no default endpoint: nothing is sent
to anyone whom the environment does not name.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast
from urllib.parse import urlsplit

from mfu_sdk import guard
from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.settings import Provider

Signal = Literal["traces", "metrics"]
Compression = Literal["none", "gzip", "deflate"]
Protocol = Literal["http/protobuf", "grpc"]

TENANT: Final = "OTEL_EXPORTER_OTLP_"
PROVIDER: Final = "MFU_PROVIDER_"

_DEFAULT_TIMEOUT_S = 10.0
_DEFAULT_METRIC_INTERVAL_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Destination:
    """One signal's collector: `headers` are as written in the variable, paths are PEM files.

    `url` is complete; for gRPC it has no path, and its scheme says whether there is TLS.
    """

    url: str
    # Headers carry credentials; they must not appear in a log or a traceback.
    headers: str = field(default="", repr=False)
    timeout_s: float = _DEFAULT_TIMEOUT_S
    compression: Compression = "none"
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    # What the variables begin with that named it.
    prefix: str = TENANT
    protocol: Protocol = "http/protobuf"


def configured(env: Mapping[str, str] | None = None, provider: Provider = Provider()) -> bool:  # noqa: B008 - frozen
    """Whether any signal has somewhere to go. Raises `ConfigurationError` for an endpoint that is not a URL."""
    signals: tuple[Signal, ...] = ("traces", "metrics")
    return any(destination(each, env) or of_provider(each, provider, env) for each in signals)


def of_provider(signal: Signal, provider: Provider, env: Mapping[str, str] | None = None) -> Destination | None:
    """Where `signal` goes for the provider, None where no endpoint is named or OTEL_SDK_DISABLED stops everything.

    Raises `ConfigurationError` for an endpoint that is not a URL, and `MissingDependencyError` for gRPC without its
    extra.
    """
    env = os.environ if env is None else env
    if provider.endpoint is None or disabled(env):
        return None
    if not _is_url(provider.endpoint):
        raise ConfigurationError(
            f"MFU_PROVIDER_ENDPOINT={provider.endpoint!r}: must be an http or https URL; "
            "write it like https://mfu.example.org"
        )
    if provider.protocol == "grpc":
        _need_grpc("MFU_PROVIDER_PROTOCOL")
        url = _without_path(provider.endpoint)
    else:
        url = f"{provider.endpoint.removesuffix('/')}/v1/{signal}"
    return Destination(
        url=url,
        headers=provider.headers,
        timeout_s=provider.timeout_s,
        compression=provider.compression,
        certificate=provider.certificate,
        client_certificate=provider.client_certificate,
        client_key=provider.client_key,
        prefix=PROVIDER,
        protocol=provider.protocol,
    )


def destination(signal: Signal, env: Mapping[str, str] | None = None) -> Destination | None:
    """Where `signal` goes, or None if the environment names no endpoint for it or turns it off.

    A timeout is in seconds, as everywhere in OpenTelemetry Python, though the specification's unit is a millisecond:
    one variable must not mean two things in one process. Raises `ConfigurationError` for an endpoint that is not a
    URL; a protocol that we do not speak, or not without an extra that is not installed, is warned of and turns the
    signal off, because whoever set it for a whole platform did not mean to stop this program. (OpenTelemetry's own
    `opentelemetry-instrument` sets gRPC where nobody has set anything.)
    """
    env = os.environ if env is None else env
    if disabled(env):
        return None
    if env.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none":
        return None
    own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    endpoint = own or base
    if not endpoint:
        return None
    protocol = (_either(env, signal, "PROTOCOL") or "http/protobuf").strip().lower()
    if protocol == "grpc" and "://" not in endpoint:
        insecure = (_either(env, signal, "INSECURE") or "").strip().lower() == "true"
        endpoint = f"{'http' if insecure else 'https'}://{endpoint}"
    if not _is_url(endpoint):
        variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
        raise ConfigurationError(
            f"{variable}={own or base!r}: must be an http or https URL; write it like http://collector:4318"
        )
    instead = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL=http/protobuf and the endpoint's HTTP port (4318)"
    if protocol == "grpc":
        if not grpc_installed():
            guard.warn_once(
                "export", f"{signal} are not sent: {_without_grpc('OTEL_EXPORTER_OTLP_PROTOCOL')} {instead}"
            )
            return None
        url = _without_path(endpoint)
    elif protocol == "http/protobuf":
        url = own or f"{endpoint.removesuffix('/')}/v1/{signal}"
    else:
        guard.warn_once(
            "export",
            f"{signal} are not sent: OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r} is not spoken here; set {instead}",
        )
        return None
    return Destination(
        url=url,
        headers=_either(env, signal, "HEADERS") or "",
        timeout_s=_positive(env, signal, "TIMEOUT", _DEFAULT_TIMEOUT_S),
        compression=_compression(env, signal),
        certificate=_either(env, signal, "CERTIFICATE"),
        client_certificate=_either(env, signal, "CLIENT_CERTIFICATE"),
        client_key=_either(env, signal, "CLIENT_KEY"),
        protocol="grpc" if protocol == "grpc" else "http/protobuf",
    )


def grpc_installed() -> bool:
    """Whether the extra is there; this does not load it."""
    return importlib.util.find_spec("grpc") is not None


def for_replay(url: str | None, provider: Provider, env: Mapping[str, str] | None = None) -> Destination:
    """Where `mfu replay` sends spans: to the base `url`, else to the provider's collector, else to the tenant's.

    With a `url`, protocol, headers, TLS and compression are the provider's where any of its variables is set, else the
    tenant's. Raises `ConfigurationError` where nothing names a collector, and `MissingDependencyError` for gRPC without
    its extra.
    """
    env = os.environ if env is None else env
    if provider == Provider() and (_either(env, "traces", "PROTOCOL") or "").strip().lower() == "grpc":
        _need_grpc("OTEL_EXPORTER_OTLP_PROTOCOL")
    found = None
    if url is None:
        found = of_provider("traces", provider, env) or destination("traces", env)
    elif not _is_url(url):
        raise ConfigurationError(f"--otlp {url!r}: must be an http or https URL; write it like http://collector:4318")
    else:
        # What turns a run's own telemetry off does not turn off what somebody asks for.
        off = ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        env = {name: value for name, value in env.items() if name not in off} | {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        if provider != Provider():
            found = of_provider("traces", replace(provider, endpoint=url), env)
        else:
            found = destination("traces", env)
    if found is None:
        raise ConfigurationError(
            "mfu replay: no collector is named; give --otlp URL or set MFU_PROVIDER_ENDPOINT or "
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return found


def metric_interval_s(env: Mapping[str, str] | None = None) -> float:
    """Seconds between two exports of metrics: OTEL_METRIC_EXPORT_INTERVAL, which is in milliseconds, else 60 s."""
    env = os.environ if env is None else env
    variable = "OTEL_METRIC_EXPORT_INTERVAL"
    return _number(variable, env.get(variable), _DEFAULT_METRIC_INTERVAL_MS) / 1000


def delta_metrics(env: Mapping[str, str] | None = None) -> bool:
    """Whether counters and histograms are sent as differences (`delta`, `lowmemory`) and not as running totals."""
    env = os.environ if env is None else env
    wanted = env.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
    return wanted in ("delta", "lowmemory")


def disabled(env: Mapping[str, str] | None = None) -> bool:
    """Whether OTEL_SDK_DISABLED stops everything."""
    env = os.environ if env is None else env
    return env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port is what checks it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _without_path(url: str) -> str:
    """Scheme, host and port of a URL: what there is to say of a gRPC server; the port is the scheme's unless told."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if parts.port else f"{parts.scheme}://{host}:{_PORTS[parts.scheme]}"


_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


def _need_grpc(variable: str) -> None:
    if not grpc_installed():
        raise MissingDependencyError(f"{_without_grpc(variable)} {variable}=http/protobuf and an HTTP port")


def _without_grpc(variable: str) -> str:
    return f"{variable}=grpc needs grpcio, which is not installed: pip install 'mfu-sdk[grpc]', or set"


def _either(env: Mapping[str, str], signal: Signal, name: str) -> str | None:
    return env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or env.get(f"OTEL_EXPORTER_OTLP_{name}") or None


def _positive(env: Mapping[str, str], signal: Signal, name: str, default: float) -> float:
    return _number(f"OTEL_EXPORTER_OTLP_{name}", _either(env, signal, name), default)


def _number(variable: str, text: str | None, default: float) -> float:
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    # The specification asks for a warning and the default, not an error, where a standard number is malformed.
    if not 0 < value < float("inf"):
        guard.warn_once("export", f"{variable}={text!r} is not a positive number; {default:g} is used")
        return default
    return value


def _compression(env: Mapping[str, str], signal: Signal) -> Compression:
    wanted = (_either(env, signal, "COMPRESSION") or "none").strip().lower()
    if wanted not in ("none", "gzip", "deflate"):
        guard.warn_once(
            "export", f"OTEL_EXPORTER_OTLP_COMPRESSION={wanted!r} is not none, gzip or deflate; none is used"
        )
        return "none"
    return cast(Compression, wanted)
