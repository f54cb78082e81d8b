"""`mfu demo`: the whole path on this machine, each part in a process of its own, as in life.

calibrate here → `mfu serve` with an empty store → train as tenant "acme" → serve as tenant "initech" → the report.
Whatever happens, Ctrl-C included, every process ends and the scratch directory goes; the page is written whole or
not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click

import mfu_sdk
from mfu_sdk import atomic
from mfu_sdk.errors import ConfigurationError, MfuError
from mfu_sdk.peak.calibrate import calibrate
from mfu_sdk.peak.describe import describe
from mfu_sdk.progress import bar
from mfu_sdk.provider import pages, report
from mfu_sdk.provider.report import Report
from mfu_sdk.records import Peaks

CALIBRATION_S = 6.0
START_S = 120.0
"""How long a part may take to say its first word, on a busy machine too; one that ends is not waited for."""
STOP_S = 10.0


class _Interrupts:
    """SIGINT and SIGTERM as one KeyboardInterrupt: the first unwinds, later ones do not disturb the unwinding.

    While a child is being started the signal waits until the child is known to those who will end it.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = False

    def __enter__(self) -> None:
        self._came = False
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._came:
            return
        self._came = True
        if not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the end of the block."""
        came_before = self._came
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came and not came_before:
            raise KeyboardInterrupt


_interrupts = _Interrupts()


class DemoError(MfuError):
    """A part of the demo did not do its work; the message holds its last words."""


def run(output: Path) -> tuple[Peaks, Report]:
    """Run the demo and write the page to `output`. Returns the peaks that it was held against, and the report.

    Raises `DemoError` if a part fails, `MissingDependencyError` without torch or the provider's packages.
    """
    if not os.access(output.parent, os.W_OK) or output.is_dir():
        raise ConfigurationError(f"{output}: cannot be written; name a file in a directory of yours that exists")
    with ExitStack() as cleanup:
        cleanup.enter_context(_interrupts)
        scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="mfu-demo-")))
        click.secho("1. the device's peak", bold=True)
        with bar("calibrating") as progress:
            peaks = calibrate(budget_s=CALIBRATION_S, progress=progress)
        click.echo(describe(peaks))

        click.secho("2. a provider with an empty store", bold=True)
        tokens = {name: secrets.token_urlsafe(24) for name in ("acme", "initech", "ops")}
        otlp_url, web_url = cleanup.enter_context(_provider(scratch, tokens))
        click.echo(f"  OTLP in on {otlp_url}, page and JSON on {web_url}")

        weights = scratch / "bytegpt.f32"
        click.secho('3. tenant "acme" trains a byte-level GPT on the standard library\'s sources', bold=True)
        _tenant("train.py", ["--save", str(weights)], otlp_url, tokens["acme"])
        click.secho('4. tenant "initech" serves it, one request at a time and then in batches', bold=True)
        _tenant("serve.py", ["--weights", str(weights)], otlp_url, tokens["initech"])

        click.secho("5. the fleet, as its provider sees it", bold=True)
        found = report.from_url(web_url, tokens["ops"], since="1h")
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else 100
        click.echo(report.render_text(found, width, color=terminal))
        atomic.write_text(output, pages.render_html(found))
        click.echo(f"the same as a page: {output.resolve()}")
        return peaks, found


def examples_dir() -> Path:
    """Where the example scripts lie: beside the package in a checkout, else inside the installed wheel."""
    package = Path(mfu_sdk.__file__).parent
    for candidate in (package.parent / "examples" / "bytegpt", package / "_examples" / "bytegpt"):
        if (candidate / "train.py").is_file():
            return candidate
    raise DemoError(f"{package}: the example scripts are missing; install mfu-sdk whole, or run from a checkout")


@contextmanager
def _provider(scratch: Path, tokens: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A running `mfu serve` with its own store and tokens: (OTLP URL, web URL)."""
    token_file = scratch / "tokens.yaml"
    token_file.touch(mode=0o600)
    # JSON is YAML too.
    token_file.write_text(
        json.dumps(
            {
                "tenants": {name: [{"token": tokens[name]}] for name in ("acme", "initech")},
                "operators": {"ops": [{"token": tokens["ops"]}]},
            }
        )
    )
    arguments = ["serve", "--data", str(scratch / "store"), "--http", "127.0.0.1:0", "--web", "127.0.0.1:0"]
    log = scratch / "serve.log"
    with (
        log.open("w") as errors,
        _process(
            [sys.executable, "-m", "mfu_sdk.cli", *arguments, "--tokens", str(token_file)], _own_environment(), errors
        ) as process,
    ):
        line = _first_line(process, START_S)
        urls = [word.rstrip("/,") for word in line.split() if word.startswith("http://")]
        if len(urls) != 2:
            raise DemoError(f"mfu serve did not start: {log.read_text().strip()[-400:] or line or 'no word from it'}")
        yield urls[0], urls[1]


def _tenant(script: str, arguments: list[str], otlp_url: str, token: str) -> None:
    """Run an example as a tenant would, its output indented."""
    env = _own_environment() | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_url,
        # Header values are URL-encoded by the specification of this variable.
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, str(examples_dir() / script), *arguments]
    with _process(command, env, subprocess.STDOUT) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line.rstrip())
            click.echo(f"  {line.rstrip()}")
        if process.wait() != 0:
            raise DemoError(f"{script} failed with exit code {process.returncode}: {(said or ['no output'])[-1]}")


def _own_environment() -> dict[str, str]:
    """The environment without what would send the demo elsewhere or turn it off; calibrations stay where they are."""
    kept = ("MFU_CACHE_DIR", "MFU_GUARD")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(("MFU_", "OTEL_"))}


@contextmanager
def _process(command: list[str], env: Mapping[str, str], errors: IO[Any] | int) -> Iterator[subprocess.Popen[str]]:
    """A child in a session of its own, so that Ctrl-C reaches only us, and we end it."""
    process: subprocess.Popen[str] | None = None
    try:
        with _interrupts.held():
            process = subprocess.Popen(  # noqa: S603 - our own interpreter on our own files
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        yield process
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process is not None and process.stdout is not None:
            process.stdout.close()


def _first_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The child's first line of output, or "" when it ends or `timeout_s` passes without one."""
    import selectors

    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(timeout_s) else ""
