"""`mfu simulate` against a real `mfu serve`: over loopback, each tenant under its own token."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from mfu_sdk.cli import main
from mfu_sdk.errors import ConfigurationError, DeliveryError
from mfu_sdk.provider.simulate.delivery import Delivery

# What is older than a fortnight is deleted as it comes, and what comes again is then not known.
UNTIL = f"{datetime.now(UTC).date() - timedelta(days=1)}T12:00:00Z"
FAULTS = "faults: [{kind: straggler, severity: 0.5, onset_h: 0.02}]\nhard_negatives: {}\nmissing: {nothing: 0.2}\n"


def mfu(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a faults file, and the provider's files of its fleet."""
    home = tmp_path_factory.mktemp("simulate")
    (home / "faults.yaml").write_text(FAULTS)
    said = mfu("simulate", *options(home))
    assert said.exit_code == 0, said.output
    assert f"mfu serve --data STORE --tokens {home / 'tokens.yaml'}" in said.stdout
    return home


def options(home: Path) -> list[str | Path]:
    return [
        "--gpus", "24", "--hours", "0.1", "--faults", home / "faults.yaml", "--seed", "9", "--until", UNTIL, "--out",
        home,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[tuple[str, str]]:
    """A daemon that knows the fleet's tokens: its OTLP and its web address."""
    command = [
        sys.executable, "-m", "mfu_sdk.cli", "serve", "--data", str(home / "data"), "--http", "127.0.0.1:0",
        "--web", "127.0.0.1:0", "--tokens", str(home / "tokens.yaml"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stdout is not None
            found = re.findall(r"http://[\d.:]+", process.stdout.readline())
            yield found[0], found[1]
        finally:
            process.terminate()
            process.wait(120)


def test_the_provider_finds_what_was_sent(home: Path, served: tuple[str, str]) -> None:
    """The report's fleet MFU is the truth file's, and a tenant's report holds that tenant's workloads alone."""
    said = mfu("simulate", *options(home), "--otlp", served[0])
    assert said.exit_code == 0, said.output
    truth = json.loads((home / "truth.json").read_text())
    tokens = yaml.safe_load((home / "tokens.yaml").read_text())

    def report(token: str) -> dict[str, object]:
        url = f"{served[1]}/api/report?since=1d&until={UNTIL}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=120) as response:
            found: dict[str, object] = json.loads(response.read())
            return found

    fleet = report(tokens["operators"]["operator"][0]["token"])
    assert fleet["fleet"]["mfu"] == pytest.approx(truth["fleet"]["mfu"], rel=1e-9)  # type: ignore[index]
    assert fleet["fleet"]["model_flop"] == pytest.approx(truth["fleet"]["model_flop"], rel=1e-9)  # type: ignore[index]
    sending = {each["tenant"]: each for each in truth["workloads"] if each["model_flop"]}
    tenant = min(sending)
    own = report(tokens["tenants"][tenant][0]["token"])["workloads"]
    assert isinstance(own, list)
    assert {each["tenant"] for each in own} == {tenant}
    # The same again adds nothing: spans are told apart by their ids.
    assert mfu("simulate", *options(home), "--otlp", served[0]).exit_code == 0
    assert report(tokens["operators"]["operator"][0]["token"])["fleet"] == fleet["fleet"]


def test_a_wrong_file_ends_with_two(home: Path, tmp_path: Path) -> None:
    """A faults file with a slip is told in one line, and nothing is written."""
    (tmp_path / "faults.yaml").write_text("faults: [{kind: gremlins}]")
    said = mfu("simulate", "--faults", tmp_path / "faults.yaml", "--out", tmp_path / "out")
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("mfu: ")
    assert said.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the codes of its server, one after the other."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        codes: list[int] = self.server.codes  # type: ignore[attr-defined]
        self.send_response(codes.pop(0))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[http.server.HTTPServer]:
    """A collector that answers as it is told."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_busy_collector_is_asked_again(answering: http.server.HTTPServer) -> None:
    """503 is tried again after a pause that grows, 401 is not."""
    slept: list[float] = []
    answering.codes = [503, 429, 200, 401]  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{answering.server_port}"
    with Delivery(url, {}, slept.append) as delivery:
        delivery.spans("acme", b"", [b""])
    assert slept == [0.2, 0.4]
    delivery = Delivery(url, {}, slept.append)
    delivery.spans("acme", b"", [b""])
    with pytest.raises(DeliveryError, match=r"401 to acme's traces .*--tokens"):
        delivery.close()


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://x", "http://x:y"])
def test_wrong_url(url: str) -> None:
    """What is no URL is refused before anything is simulated."""
    with pytest.raises(ConfigurationError, match="--otlp"):
        Delivery(url, {})


def test_nobody_there() -> None:
    """A collector that cannot be reached is named, with the remedy."""
    delivery = Delivery("http://127.0.0.1:9", {})
    delivery.spans("acme", b"", [b""])
    with pytest.raises(DeliveryError, match="start `mfu serve`"):
        delivery.close()
