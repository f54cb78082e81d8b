"""Manifests, compose file and image: what they name exists, what they open is what the daemon listens on."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfu_sdk.cli import main
from mfu_sdk.provider.credentials import Credentials, Identity
from mfu_sdk.settings import OPTIONS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "provider"
KUBERNETES = EXAMPLES / "kubernetes"
Object = dict[str, Any]


def documents(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


OBJECTS = {
    (found["kind"], found["metadata"]["name"]): found
    for name in yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    for found in documents(KUBERNETES / name)
}
SET = OBJECTS["StatefulSet", "mfu-serve"]
POD = SET["spec"]["template"]
[SERVE] = POD["spec"]["containers"]
[JOB] = documents(KUBERNETES / "job.yaml")
[TRAIN] = JOB["spec"]["template"]["spec"]["containers"]
COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text("utf-8"))


def make_tokens(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program, as the script does")
    return subprocess.run(
        [EXAMPLES / "make-tokens.sh", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def options_of_serve() -> set[str]:
    command = main.commands["serve"]
    return {name for option in command.params for name in option.opts}


# --- tokens --------------------------------------------------------------------------------------------------------


def test_tokens(tmp_path: Path) -> None:
    """Each tenant's token is its own, opens the daemon, and lies in its own file alone, which nobody else may read."""
    folder = tmp_path / "secrets"
    said = make_tokens(folder, "acme", "initech")
    assert (said.returncode, said.stderr) == (0, "")
    known = Credentials(folder / "tokens.yaml")
    tokens = {name: (folder / f"{name}.token").read_text("ascii") for name in ("acme", "initech", "ops")}
    for name, token in tokens.items():
        assert len(token) == 64
        assert known.identify(token, None) == Identity(name, operator=name == "ops")
        assert (folder / f"{name}.token").stat().st_mode & 0o077 == 0
    shared = (folder / "tokens.yaml").read_text() + (folder / "htpasswd").read_text()
    assert not any(token in shared for token in tokens.values())
    assert re.findall(r"^(\w+):\$apr1\$", (folder / "htpasswd").read_text(), re.MULTILINE) == ["acme", "initech"]
    again = make_tokens(folder, "acme")
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    assert (folder / "acme.token").read_text("ascii") == tokens["acme"]


@pytest.mark.parametrize("name", ["ops", "a b", "../x", 'a"'])
def test_no_tenant(tmp_path: Path, name: str) -> None:
    """What is no name is refused before anything is written."""
    said = make_tokens(tmp_path / "secrets", "acme", name)
    assert (said.returncode, "a tenant is named by" in said.stderr) == (2, True)
    assert not (tmp_path / "secrets").exists()


def test_secrets_stay_out() -> None:
    """git takes nothing from a folder of secrets here."""
    for path in ("secrets/acme.token", "kubernetes/secrets/tokens.yaml"):
        ignored = subprocess.run(
            ["git", "check-ignore", "--quiet", EXAMPLES / path], cwd=ROOT, check=False, timeout=300
        )
        assert ignored.returncode == 0


# --- Kubernetes ----------------------------------------------------------------------------------------------------


def mounts_exist(pod: Object, claims: frozenset[str] = frozenset()) -> None:
    """Every mount is of a volume, and every volume is mounted."""
    volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())} | claims
    mounted = {mount["name"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]}
    assert mounted == volumes


def test_the_daemon() -> None:
    """One process owns the store; it is nobody, cannot become somebody, and writes to its volumes alone."""
    assert SET["spec"]["replicas"] == 1
    assert POD["spec"]["automountServiceAccountToken"] is False
    who, may = POD["spec"]["securityContext"], SERVE["securityContext"]
    assert (who["runAsNonRoot"], who["runAsUser"], who["seccompProfile"]) == (True, 10001, {"type": "RuntimeDefault"})
    assert may == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert SERVE["resources"].keys() == {"requests", "limits"}
    claims = frozenset(claim["metadata"]["name"] for claim in SET["spec"]["volumeClaimTemplates"])
    mounts_exist(POD, claims)
    where = {mount["mountPath"]: mount["name"] for mount in SERVE["volumeMounts"]}
    assert where["/var/lib/mfu"] in claims
    assert f"--tokens={next(path for path, name in where.items() if name == 'tokens')}/tokens.yaml" in SERVE["args"]


def test_options() -> None:
    """Every option is one of `mfu serve`'s, and each address is a port that is named."""
    given = dict(argument.split("=", 1) for argument in SERVE["args"])
    assert given.keys() <= options_of_serve()
    ports = {port["name"]: port["containerPort"] for port in SERVE["ports"]}
    assert [given[f"--{name}"] for name in ("http", "web")] == [f"0.0.0.0:{ports[name]}" for name in ("otlp", "web")]
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))
    [literals] = [made["literals"] for made in kustomization["configMapGenerator"] if made["name"] == "mfu-serve"]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(SERVE["args"]))) == {text.split("=")[0] for text in literals}


def test_references() -> None:
    """Selectors match labels, ports are named, probes ask what answers without a token, secrets are generated."""
    labels = POD["metadata"]["labels"]
    service, policy = OBJECTS["Service", "mfu-serve"]["spec"], OBJECTS["NetworkPolicy", "mfu-serve"]["spec"]
    for selector in (SET["spec"]["selector"]["matchLabels"], service["selector"], policy["podSelector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    ports = {port["name"] for port in SERVE["ports"]}
    named = {port["targetPort"] for port in service["ports"]} | {
        port["port"] for rule in policy["ingress"] for port in rule["ports"]
    }
    assert named == ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert SERVE[probe]["httpGet"] == {"path": "/healthz", "port": "web"}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))
    made = {one["name"]: one["files"] for one in kustomization["secretGenerator"]}
    used = {volume["secret"]["secretName"] for volume in POD["spec"]["volumes"] if "secret" in volume}
    assert used == made.keys()
    assert made["mfu-tokens"] == ["secrets/tokens.yaml"]
    assert not any(found["kind"] == "Secret" for found in OBJECTS.values())


def test_the_job() -> None:
    """Its variables are settings that there are, point at the service, and name pod and node by the downward API."""
    mounts_exist(JOB["spec"]["template"])
    env = {variable["name"]: variable for variable in TRAIN["env"]}
    settings = {option.variable for option in OPTIONS}
    assert {name for name in env if name.startswith("MFU_")} - {"MFU_TOKEN"} <= settings
    service = OBJECTS["Service", "mfu-serve"]
    [port] = [port["port"] for port in service["spec"]["ports"] if port["name"] == "otlp"]
    assert env["MFU_PROVIDER_ENDPOINT"]["value"] == f"http://mfu-serve.mfu.svc.cluster.local:{port}"
    fields = {
        name: given["valueFrom"]["fieldRef"]["fieldPath"] for name, given in env.items() if "fieldRef" in str(given)
    }
    assert (fields["NODE_NAME"], fields["POD_UID"]) == ("spec.nodeName", "metadata.uid")
    # $(NAME) is replaced only by variables that come before it.
    order = list(env)
    for name, given in env.items():
        for used in re.findall(r"\$\((\w+)\)", given.get("value", "")):
            assert order.index(used) < order.index(name)
    first = int(env["MFU_PROMETHEUS_PORT"]["value"])
    gpus = TRAIN["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in TRAIN["command"]
    assert [port["containerPort"] for port in TRAIN["ports"]] == list(range(first, first + gpus))


def test_the_pod_monitor() -> None:
    """It selects the job's pods and scrapes the port of every rank."""
    [monitor] = documents(KUBERNETES / "podmonitor.yaml")
    labels = JOB["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    scraped = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    assert scraped == [port["name"] for port in TRAIN["ports"]]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize(tmp_path: Path) -> None:
    """kubectl makes an object of each kind of it, with the tokens that were made and the image that is to be pulled."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("secrets"))
    assert make_tokens(tmp_path / "kubernetes" / "secrets", "acme").returncode == 0
    said = subprocess.run(
        ["kubectl", "kustomize", tmp_path / "kubernetes"], capture_output=True, text=True, check=False, timeout=300
    )
    assert said.returncode == 0, said.stderr
    made = {found["kind"]: found for found in yaml.safe_load_all(said.stdout)}
    assert made.keys() == {"Namespace", "ConfigMap", "Secret", "Service", "StatefulSet", "NetworkPolicy"}
    assert list(made["Secret"]["data"]) == ["tokens.yaml"]
    [container] = made["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.org/mfu-serve:")
    assert container["envFrom"] == [{"configMapRef": {"name": made["ConfigMap"]["metadata"]["name"]}}]


# --- image and compose ---------------------------------------------------------------------------------------------


def test_image() -> None:
    """What is copied is there, is all that the wheel is built of, and the user is the manifest's."""
    text = (EXAMPLES / "Dockerfile").read_text("utf-8")
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    assert copied >= {"pyproject.toml", "constraints.txt", "mfu_sdk", "kernels", "examples/bytegpt", "README.md"}
    assert f"--uid {POD['spec']['securityContext']['runAsUser']}" in text
    assert set(re.findall(r'"(--\w+)"', text)) <= options_of_serve()


def test_compose() -> None:
    """Mounts are of files that are there or made, services that are named exist, nothing is open beyond loopback."""
    services = COMPOSE["services"]
    for service in services.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("./secrets/"):
                assert source.removeprefix("./secrets/") in {"tokens.yaml", "acme.token"}
            elif source.startswith("."):
                assert (EXAMPLES / source).exists()
            else:
                assert source in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert set(service.get("depends_on", ())) <= services.keys()
        assert "image" in service
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"]
    assert (EXAMPLES / services["serve"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["serve"]["build"]["dockerfile"]).exists()
    [scraped] = yaml.safe_load((EXAMPLES / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped["honor_labels"] is True
    [target] = scraped["static_configs"][0]["targets"]
    collector = yaml.safe_load((EXAMPLES / "collector" / "tenant.yaml").read_text("utf-8"))
    assert target.split(":") == ["collector", collector["exporters"]["prometheus"]["endpoint"].split(":")[1]]
    assert services["collector"]["environment"]["MFU_SERVE_URL"] == "http://serve:4318"


def test_hashes_are_of_tokens(tmp_path: Path) -> None:
    """A token's hash has no line's end in it."""
    make_tokens(tmp_path / "s", "acme")
    token = (tmp_path / "s" / "acme.token").read_bytes()
    assert hashlib.sha256(token).hexdigest() in (tmp_path / "s" / "tokens.yaml").read_text()
