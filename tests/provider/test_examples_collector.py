"""The Collector's configurations: no Collector is at hand, so that their form is held against its documentation."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfu_sdk.provider import schema

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "provider"
COLLECTOR = EXAMPLES / "collector"
Config = dict[str, Any]

# Keys that components have, of those that are used here. Sources, at github.com/open-telemetry unless said:
#   core:    opentelemetry-collector, config/{configgrpc,confighttp,configtls,configauth}/README.md,
#            exporter/exporterhelper/README.md, exporter/otlphttpexporter/README.md, receiver/otlpreceiver/config.md,
#            processor/memorylimiterprocessor/README.md
#   contrib: opentelemetry-collector-contrib, {extension,processor,exporter,receiver}/NAME/README.md; for clickhouse
#            exporter/clickhouseexporter/config.go, for actions internal/coreinternal/attraction/attraction.go
ANY: Any = object()
TLS = {"cert_file", "key_file", "client_ca_file", "min_version"}
SERVER = {"endpoint": ANY, "include_metadata": ANY, "tls": TLS, "auth": {"authenticator"}}
BATCH = {"min_size", "max_size", "flush_timeout"}
QUEUE = {"enabled": ANY, "storage": ANY, "sizer": ANY, "queue_size": ANY, "num_consumers": ANY, "batch": BATCH}
RETRY = {"enabled", "max_elapsed_time"}
HEALTH = {"endpoint"}
KNOWN: dict[str, dict[str, Any]] = {
    "extensions": {
        "basicauth": {"htpasswd": {"file", "inline"}, "client_auth": {"username", "password"}},
        "bearertokenauth": {"scheme", "token", "filename"},
        "oidc": {"providers": [{"issuer_url", "audience", "username_claim", "public_keys_file"}]},
        "headers_setter": {"headers": [{"action", "key", "value", "from_context", "default_value"}]},
        "file_storage": {"directory", "create_directory"},
        "health_check": HEALTH,
    },
    "receivers": {
        "otlp": {"protocols": {"grpc": SERVER, "http": SERVER}},
        # Prometheus' own configuration, which promtool checks.
        "prometheus": {"config": ANY},
    },
    "processors": {
        "memory_limiter": {"check_interval", "limit_percentage", "spike_limit_percentage"},
        "resource": {"attributes": [{"key", "action", "value", "from_attribute", "from_context"}]},
        "filter": {"error_mode": ANY, "traces": {"span", "spanevent"}, "metrics": {"metric", "datapoint"}},
        "transform": {"error_mode": ANY, "metric_statements": [{"context", "conditions", "statements"}]},
    },
    "exporters": {
        "clickhouse": {
            **dict.fromkeys(("endpoint", "username", "password", "database", "create_schema", "timeout"), ANY),
            **dict.fromkeys(("traces_table_name", "async_insert"), ANY),
            "retry_on_failure": RETRY,
            "sending_queue": QUEUE,
        },
        "otlphttp": {
            **dict.fromkeys(("endpoint", "compression"), ANY),
            "auth": {"authenticator"},
            "retry_on_failure": RETRY,
            "sending_queue": QUEUE,
        },
        "prometheus": {"endpoint", "metric_expiration", "send_timestamps", "const_labels"},
    },
}


def merged(below: Any, above: Any) -> Any:
    """Two configurations as the Collector merges them: maps key by key, all else replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def load(*names: str) -> Config:
    made: Config = {}
    for name in names:
        made = merged(made, yaml.safe_load((COLLECTOR / f"{name}.yaml").read_text("utf-8")))
    return made


ALL = {
    "clickhouse": load("clickhouse"),
    "clickhouse+oidc": load("clickhouse", "oidc"),
    "serve": load("serve"),
    "tenant": load("tenant"),
}
each = pytest.mark.parametrize("name", ALL)


def unknown(value: Any, known: Any, at: str) -> Iterator[str]:
    """Where `value` has a key that `known` does not."""
    if known is ANY:
        return
    if isinstance(known, list):
        assert isinstance(value, list), at
        for number, entry in enumerate(value):
            yield from unknown(entry, known[0], f"{at}[{number}]")
        return
    assert isinstance(value, dict), at
    for key, inner in value.items():
        if key not in known:
            yield f"{at}.{key}"
        elif isinstance(known, dict):
            yield from unknown(inner, known[key], f"{at}.{key}")


def referenced(config: Config, key: str) -> set[str]:
    """The values of every `key`, however deep."""
    found: set[str] = set()
    for name, value in config.items():
        if name == key:
            found.add(value)
        elif isinstance(value, dict):
            found |= referenced(value, key)
    return found


@each
def test_keys(name: str) -> None:
    """Every key is one that the component documents."""
    config = ALL[name]
    assert config.keys() == {*KNOWN, "service"}
    for kind, known in KNOWN.items():
        for component, settings in config[kind].items():
            assert list(unknown(settings, known[component.partition("/")[0]], component)) == []
    assert list(unknown(config["service"], {"extensions": ANY, "pipelines": ANY}, "service")) == []


def test_a_wrong_key_is_found() -> None:
    """The check itself: a key at the wrong depth is told by its place."""
    wrong = {"otlp": {"protocols": {"grpc": {"authenticator": "x"}}}}
    assert list(unknown(wrong, KNOWN["receivers"], "receivers")) == ["receivers.otlp.protocols.grpc.authenticator"]


@each
def test_references(name: str) -> None:
    """Pipelines name what is declared, nothing declared is left over, and extensions that are leant on are started."""
    config = ALL[name]
    pipelines = config["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert {part for pipeline in pipelines for part in pipeline[kind]} == config[kind].keys()
    started = set(config["service"]["extensions"])
    assert referenced(config, "authenticator") | referenced(config, "storage") | {"health_check"} == started
    # What the overlay replaces stays declared, and is not started.
    assert started | {"basicauth/tenants"} >= config["extensions"].keys() >= started
    for pipeline in pipelines:
        assert pipeline["processors"][0] == "memory_limiter"


@pytest.mark.parametrize(
    ("name", "source"), [("clickhouse", "auth.username"), ("clickhouse+oidc", "auth.claims.tenant")]
)
def test_tenant(name: str, source: str) -> None:
    """Whoever comes in is known, over TLS; the resource's tenant is the credential's; nothing passes without one."""
    config = ALL[name]
    for server in config["receivers"]["otlp"]["protocols"].values():
        assert server["tls"].keys() >= {"cert_file", "key_file"}
        assert server["auth"]["authenticator"] in config["service"]["extensions"]
    key = "mfu.tenant.id"
    assert config["processors"]["resource/tenant"]["attributes"] == [
        {"key": key, "action": "delete"},
        {"key": key, "action": "upsert", "from_context": source},
    ]
    for pipeline in config["service"]["pipelines"].values():
        if "otlp" in pipeline["receivers"]:
            assert pipeline["processors"][1:3] == ["resource/tenant", "filter/ours"]
        if {"otlp", "prometheus"} <= {*pipeline["receivers"], *pipeline["exporters"]}:
            assert pipeline["processors"][-1] == "transform/tenant"
    for signal, record in (("traces", "span"), ("metrics", "metric")):
        assert f'resource.attributes["{key}"] == nil' in config["processors"]["filter/ours"][signal][record]


def test_tables() -> None:
    """What the exporter writes to is what the DDL makes, in the Collector's form and under its default names."""
    exporter: Mapping[str, Any] = ALL["clickhouse"]["exporters"]["clickhouse"]
    assert exporter["create_schema"] is False
    made = (EXAMPLES / "clickhouse" / "cluster.sql").read_text("utf-8")
    tables = [exporter["traces_table_name"], *(f"otel_metrics_{kind}" for kind in ("gauge", "sum", "histogram"))]
    for table in tables:
        assert f"CREATE OR REPLACE TABLE {exporter['database']}.{table} ON CLUSTER" in made


def test_ddl_is_current() -> None:
    """cluster.sql is what `mfu provider ddl --cluster fleet --ttl 14d,90d,3y` prints."""
    made = schema.ddl("fleet", schema.parse_retention("14d,90d,3y"))
    assert (EXAMPLES / "clickhouse" / "cluster.sql").read_text("utf-8").rstrip("\n") == made.rstrip("\n")


def test_own_tokens_pass() -> None:
    """The door of `mfu serve` mixes no tokens: metadata is kept, nothing is batched or queued, the header goes on."""
    config = ALL["serve"]
    assert all(server["include_metadata"] for server in config["receivers"]["otlp"]["protocols"].values())
    [exporter] = config["exporters"].values()
    assert exporter["sending_queue"] == {"enabled": False}
    assert config["extensions"][exporter["auth"]["authenticator"]]["headers"] == [
        {"action": "upsert", "key": "authorization", "from_context": "authorization"}
    ]


@pytest.mark.services
def test_scrape_of_dcgm(tmp_path: Path) -> None:
    """The Prometheus receiver's own part is what Prometheus takes."""
    found = shutil.which("promtool")
    assert found, "promtool is missing: `make test-services` installs Debian's prometheus"
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(ALL["clickhouse"]["receivers"]["prometheus/dcgm"]["config"]), encoding="utf-8")
    said = subprocess.run([found, "check", "config", path], capture_output=True, text=True, check=False, timeout=300)
    assert said.returncode == 0, said.stderr
