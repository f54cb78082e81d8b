"""The pages in a real browser, served by a real daemon, fed over real OTLP."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .fed import resource, window

pytestmark = pytest.mark.services

NAMES = ("short", "a-workload-with-a-name-that-nobody-would-want-to-read-in-a-table" * 2, "<b>bold</b>")
PAGES = ("/", "/nodes", "/workloads", "/causes", "/money", "/workload/local/short", "/runs/run-short", "/nodes/node-1")


class Daemon(NamedTuple):
    """Where a daemon takes OTLP in and where its pages are."""

    otlp: str
    web: str

    def page(self, path: str = "/") -> str:
        return f"{self.web}{path}?since=1h"


def request(url: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.loads(answer.read() or b"null")


def send(daemon: Daemon, numbers: range, names: tuple[str, ...]) -> None:
    now = time.time_ns()
    spans = [window(n, resource(name), now, mfu=0.2 + 0.05 * n, expected=0.6) for n in numbers for name in names]
    request(f"{daemon.otlp}/v1/traces", {"resourceSpans": spans})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without tokens that knows three workloads and a trend of six points."""
    data = tmp_path_factory.mktemp("page") / "store"
    command = [sys.executable, "-m", "mfu_sdk.cli", "serve", "--data", str(data)]
    with subprocess.Popen(
        [*command, "--http", "127.0.0.1:0", "--web", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = Daemon(*re.findall(r"http://[\d.:]+", process.stdout.readline()))
            send(found, range(1, 7), NAMES)
            yield found
        finally:
            process.terminate()
            assert process.wait(120) == 0


class Browser:
    """A headless Chromium, spoken to in the W3C WebDriver protocol."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        chrome = {"args": [*options, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = request(f"{driver}/session", {"capabilities": wanted})["value"]["sessionId"]
        self._session = f"{driver}/session/{session}"

    def open(self, url: str, width: int = 1280, *, zoom: int = 1, scheme: str = "light") -> None:
        """Go to `url` in a window of `width` pixels that are magnified `zoom` times."""
        size = {"width": width // zoom, "height": 900 // zoom, "deviceScaleFactor": zoom, "mobile": False}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._command("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": media})
        self._command("goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
        self._command("url", {"url": url})

    def run(self, script: str) -> Any:
        return self._command("execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        """One key, as WebDriver names it."""
        stroke = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._command("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": stroke}]})

    def wait(self, script: str) -> Any:
        """What `script` answers once that is true.

        Asked from here, again and again: a promise that the page keeps goes with the page when another is opened, and
        the driver then waits for it until its time is over.
        """
        said = "it was never true"
        for _ in range(2400):
            try:
                if found := self.run(script):
                    return found
            except urllib.error.HTTPError as error:
                # A page that is being left answers nothing.
                said = error.read().decode(errors="replace")
            time.sleep(0.05)
        raise AssertionError(f"{script}: {said}")

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
                process.wait(120)


TAB, ENTER = "\ue004", "\ue007"

# The colour of every text on what lies behind it, as WCAG 2 reckons their contrast; large text needs 3, other 4.5.
CONTRAST = """
const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (c) => { const l = c.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
const behind = (e) => { let found = [0, 0, 0, 0]; const layers = [];
  for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]); };
const low = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode, e = text.parentElement;
  if (!text.data.trim() || !e.getClientRects().length || e.closest("title, option, .hidden, .skip")) continue;
  const style = getComputedStyle(e), size = parseFloat(style.fontSize);
  const ink = parse(e.closest("svg") ? style.fill : style.color), back = behind(e);
  const [a, b] = [light(over(ink, back)), light(back)].sort((x, y) => y - x);
  const need = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
  const found = (a + 0.05) / (b + 0.05);
  if (found < need) low.push(`${text.data.trim().slice(0, 30)}: ${found.toFixed(2)}`);
}
return low;
"""


UNNAMED = """
const boxes = document.querySelectorAll("input:not([type=hidden]), select");
const controls = [...boxes].filter((e) => !e.labels.length);
const named = [...document.querySelectorAll("a, button")].filter((e) => !e.textContent.trim());
return [...controls, ...named].map((e) => e.outerHTML);
"""


@pytest.mark.parametrize(("width", "zoom", "paths"), [(1280, 2, PAGES[:2]), (360, 1, PAGES)])
def test_nothing_is_wider_than_the_screen(
    daemon: Daemon, browser: Browser, width: int, zoom: int, paths: tuple[str, ...]
) -> None:
    """Magnified twice and on a phone no page scrolls sideways, however long a workload's name is."""
    for path in paths:
        browser.open(daemon.page(path), width, zoom=zoom)
        assert browser.run("return window.innerWidth") == width // zoom
        assert browser.run("return document.documentElement.scrollWidth") <= width // zoom, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(daemon: Daemon, browser: Browser, scheme: str) -> None:
    """In light and in dark every text, those in pictures too, has the contrast that WCAG asks for."""
    for path in ("/", "/runs/run-short", "/causes"):
        browser.open(daemon.page(path), scheme=scheme)
        assert browser.run(CONTRAST) == [], path


def test_light_and_dark_are_one_page(daemon: Daemon, browser: Browser) -> None:
    """The pictures' colours follow the scheme as the page's do."""
    colours = set()
    for scheme in ("light", "dark"):
        browser.open(daemon.page(), scheme=scheme)
        colours.add(browser.run("return getComputedStyle(document.querySelector('#trend svg path[stroke]')).stroke"))
    assert len(colours) == 2
    assert not {"none", "rgb(0, 0, 0)"} & colours


def test_pages_ask_nobody_else_and_name_their_controls(daemon: Daemon, browser: Browser) -> None:
    """Each page gets style and script from its own address, nothing else; each box has a label, each link a name."""
    for path in PAGES:
        browser.open(daemon.page(path))
        asked = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert all(name.startswith(f"{daemon.web}/assets/") for name in asked)
        assert {name.rpartition("/")[2].partition("?")[0] for name in asked} >= {"page.css", "live.js"}
        assert browser.run(UNNAMED) == []
    assert browser.run("return getComputedStyle(document.querySelector('.hero')).display") == "grid"
    assert [entry for entry in browser.console() if entry["level"] == "SEVERE"] == []


def test_keys_reach_everything(daemon: Daemon, browser: Browser) -> None:
    """Tab goes to the link that skips, the pages, the filters in their order and the tables; Enter follows the skip."""
    browser.open(daemon.page())
    where = "const e = document.activeElement; return e.name || e.getAttribute('aria-label') || e.textContent.trim()"
    seen = []
    for _ in range(12):
        browser.press(TAB)
        seen.append(browser.run(where))
    assert seen[:8] == [
        "Skip to the figures", "Model FLOP utilization", "Fleet", "Workloads", "Nodes", "Causes", "Money", "since",
    ]  # fmt: skip
    assert seen[8:11] == ["gpu_type", "Show", "Pause updates"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"
    tables = browser.run("return [...document.querySelectorAll('.scroll')].every((e) => e.tabIndex === 0)")
    assert tables
    browser.open(daemon.page())
    browser.press(TAB)
    browser.press(ENTER)
    assert browser.run("return document.activeElement.id") == "main"


def test_filters_by_keyboard(daemon: Daemon, browser: Browser) -> None:
    """A filter that is chosen and sent shows in the address, and the page is of it."""
    browser.open(daemon.page("/workloads"))
    browser.run("document.querySelector('[name=find]').focus()")
    for key in "bold":
        browser.press(key)
    browser.press(ENTER)
    found = browser.wait(
        "return location.search.includes('find=bold') && document.querySelector('.pager')?.textContent"
    )
    assert "1 to 1 of 1 workloads, of 3 in all" in " ".join(found.split())


def test_bars_are_as_long_as_their_ratios(daemon: Daemon, browser: Browser) -> None:
    """A bar's filled part is to its track as MFU is to the scale's end; here the mean of 25 to 50 %."""
    browser.open(daemon.page())
    widths = browser.run(
        "return [...document.querySelectorAll('#workloads .bar')].map("
        "b => b.querySelector('.fill').getBoundingClientRect().width / b.getBoundingClientRect().width)"
    )
    scale = float(browser.run("return document.body.innerText.match(/on one scale, 0 to ([0-9]+) %/)[1]")) / 100
    assert widths == pytest.approx([0.375 / scale] * 3, abs=0.01)


def test_names_are_text(daemon: Daemon, browser: Browser) -> None:
    """A workload called <b>bold</b> is shown as it is spelt and adds no element."""
    browser.open(daemon.page())
    assert "<b>bold</b>" in browser.run("return document.body.innerText")
    assert browser.run("return [...document.querySelectorAll('b')].filter(b => b.textContent == 'bold').length") == 0


def test_one_file_asks_for_nothing(daemon: Daemon, browser: Browser, tmp_path: Path) -> None:
    """`mfu report --format html` is the same page in one file, with its style and pictures, that asks for nothing."""
    output = tmp_path / "fleet.html"
    command = [sys.executable, "-m", "mfu_sdk.cli", "report", "--url", daemon.web, "--since", "1h", "--format", "html"]
    subprocess.run([*command, "-o", str(output)], check=True, timeout=300)
    browser.open(output.as_uri())
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return getComputedStyle(document.querySelector('.hero')).display") == "grid"
    assert browser.run("return document.querySelectorAll('svg.chart').length") > 3
    assert browser.run("return document.querySelectorAll('a, form, script').length") == 0
    assert [entry for entry in browser.console() if entry["level"] == "SEVERE"] == []


def test_a_page_lives_where_its_reader_is(daemon: Daemon, browser: Browser) -> None:
    """What changed is replaced under a reader who keeps focus and place; one who pauses is left alone."""
    browser.open(daemon.page("/workloads"), 500)
    browser.run(
        "document.querySelector('#list .scroll').scrollLeft = 40; window.scrollTo(0, 60);"
        "[...document.querySelectorAll('#list a')].find((a) => a.textContent == 'short').focus({preventScroll: true});"
        "window.mine = document.querySelector('#list')"
    )
    scrolled = browser.run("return window.scrollY")
    assert scrolled > 0
    send(daemon, range(7, 9), ("late",))
    # A reader who comes back. A report is kept for some seconds; one of the same time by another name is not.
    browser.run("history.replaceState(null, '', '?since=60m'); document.dispatchEvent(new Event('visibilitychange'));")
    assert browser.wait("return document.querySelector('#list').textContent.includes('late')")
    assert browser.run("return document.activeElement.textContent") == "short"
    assert browser.run("return document.querySelector('#list') !== window.mine")
    assert browser.run("return document.querySelector('#list .scroll').scrollLeft") == 40
    assert browser.run("return window.scrollY") == scrolled
    pause = "const b = document.querySelector('.live button'); b.click(); return b.textContent"
    assert [browser.run(pause), browser.run(pause)] == ["Resume updates", "Pause updates"]
