"""The fleet page in a real browser, served by a real daemon, fed over real OTLP."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfu_sdk import semconv

pytestmark = pytest.mark.services

NAMES = ("short", "a-workload-with-a-name-that-nobody-would-want-to-read-in-a-table" * 2, "<b>bold</b>")


def request(url: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def attributes(values: dict[str, object]) -> list[dict[str, object]]:
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return [{"key": k, "value": {kinds[type(v)]: str(v) if type(v) is int else v}} for k, v in values.items()]


def window(number: int, workload: str, mfu: float, expected: float) -> dict[str, object]:
    """One window span of a workload as OTLP JSON: 30 s on a device of 1 TFLOP/s."""
    start = time.time_ns() - number * 300 * 10**9
    available = 30e12
    resource = {
        semconv.SERVICE_NAME: workload,
        semconv.WORKLOAD_NAME: workload,
        semconv.RUN_ID: f"run-{workload}",
        semconv.HOST_NAME: "node-1",
        semconv.HW_NAME: "NVIDIA H100 80GB HBM3",
        semconv.DIST_WORLD_SIZE: 1,
    }
    found = {
        semconv.PHASE: "train",
        semconv.MODEL_FLOP: mfu * available,
        semconv.AVAILABLE_FLOP: available,
        semconv.EXPECTED_FLOP: expected * available,
        semconv.EXPECTED_AVAILABLE_FLOP: available,
        semconv.STEP_TIME: 30.0,
        semconv.WINDOW_STEP_COUNT: 30,
        semconv.WINDOW_STEP_TIMED: 30,
        semconv.WINDOW_STEP_UNKNOWN: 0,
        semconv.COUNT_COVERAGE: 1.0,
    }
    span = {
        "traceId": f"{number + 1:032x}",
        "spanId": f"{abs(hash(workload)) % 2**60 + number + 1:016x}",
        "name": semconv.SPAN_WINDOW,
        "kind": 1,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 30 * 10**9),
        "attributes": attributes(found),
    }
    return {"resource": {"attributes": attributes(resource)}, "scopeSpans": [{"scope": {}, "spans": [span]}]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with three workloads and a trend of six points."""
    data = tmp_path_factory.mktemp("page") / "store"
    command = [sys.executable, "-m", "mfu_sdk.cli", "serve", "--data", str(data)]
    with subprocess.Popen(
        [*command, "--http", "127.0.0.1:0", "--web", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    ) as daemon:
        try:
            assert daemon.stdout is not None
            otlp, web = re.findall(r"http://[\d.:]+", daemon.stdout.readline())
            spans = [window(n, name, 0.2 + 0.05 * n, 0.6) for n in range(1, 7) for name in NAMES]
            request(f"{otlp}/v1/traces", {"resourceSpans": spans})
            yield f"{web}/?since=1h"
        finally:
            daemon.terminate()
            assert daemon.wait(30) == 0


class Browser:
    """A headless Chromium, spoken to in the W3C WebDriver protocol."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        chrome = {"args": [*options, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = request(f"{driver}/session", {"capabilities": wanted})["value"]["sessionId"]
        self._session = f"{driver}/session/{session}"

    def open(self, url: str, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._command("goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
        self._command("url", {"url": url})

    def run(self, script: str) -> Any:
        return self._command("execute/sync", {"script": script, "args": []})

    def console(self) -> list[Any]:
        return list(self._command("se/log", {"type": "browser"}))

    def close(self) -> None:
        request(self._session, method="DELETE")

    def _command(self, path: str, body: Any) -> Any:
        return request(f"{self._session}/{path}", body)["value"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the module; it ends with its driver."""
    driver = shutil.which("chromedriver")
    assert driver, "chromedriver is missing: `make test-services` installs Debian's chromium and chromium-driver"
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = next(m[1] for line in process.stdout if (m := re.search(r"successfully on port (\d+)", line)))
            found = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("profile"))
            yield found
            found.close()
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_is_wider_than_the_screen(page: str, browser: Browser, width: int) -> None:
    """On a desk and on a phone the page itself never scrolls sideways, however long a workload's name is."""
    browser.open(page, width)
    assert browser.run("return window.innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_styles_apply_and_nothing_is_blocked(page: str, browser: Browser) -> None:
    """The page's own security policy lets its style in, and the browser has nothing to complain of."""
    browser.open(page, 1280)
    assert browser.run("return getComputedStyle(document.querySelector('.hero')).display") == "grid"
    colour = "return getComputedStyle(document.querySelector('.bar .fill')).fill"
    assert browser.run(colour) == "rgb(31, 111, 235)"
    errors = [entry for entry in browser.console() if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
    assert errors == []


def test_bars_are_as_long_as_their_ratios(page: str, browser: Browser) -> None:
    """A bar's filled part is to its track as MFU is to the scale's end; here the mean of 25 to 50 %."""
    browser.open(page, 1280)
    widths = browser.run(
        "return [...document.querySelectorAll('main table .bar')].slice(0, 3).map("
        "b => b.querySelector('.fill').getBoundingClientRect().width / b.getBoundingClientRect().width)"
    )
    scale = float(browser.run("return document.body.innerText.match(/on one scale, 0 to ([0-9]+) %/)[1]")) / 100
    assert widths == pytest.approx([0.375 / scale] * 3, abs=0.01)


def test_names_are_text(page: str, browser: Browser) -> None:
    """A workload called <b>bold</b> is shown as it is spelt and adds no element."""
    browser.open(page, 1280)
    assert "<b>bold</b>" in browser.run("return document.body.innerText")
    assert browser.run("return [...document.querySelectorAll('b')].filter(b => b.textContent == 'bold').length") == 0
