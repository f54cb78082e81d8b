"""Draws Vega-Lite specs as SVG: vl-convert, in a process of its own.

Of its own for two reasons, both measured with vl-convert 1.9.0: a text that is no XML (a NUL in a name) makes its text
measuring panic where nothing can unwind, which aborts the process it is in; and it holds the interpreter's lock for
the 25 ms that a chart takes, in which a daemon would take nothing in. The process needs 0.5 s to draw its first chart
and 140 MB; it ends when its standard input does, hence with its owner, however that ends.

The wheel is 84 MB unpacked and asks for no other package; the page stays without Vega's scripts. Plotly was the other
candidate: its script alone is 4.8 MB a page, and a page that is one file would carry it.
"""

import json
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from mfu_sdk.guard import log

_VEGA_LITE: Final = "6.4"
_BUDGET_S: Final = 20.0
_KEPT: Final = 512


class Artist:
    """One process that draws, started by the first chart; safe to use from several threads.

    A chart that was drawn is kept, among the `_KEPT` last ones. A process that dies, or that takes longer than
    `budget_s`, costs the chart that it was at, and the next chart gets a new one.
    """

    def __init__(self, budget_s: float = _BUDGET_S) -> None:
        self._budget_s = budget_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._drawn: OrderedDict[str, str] = OrderedDict()

    def draw(self, spec: Mapping[str, Any]) -> str | None:
        """A Vega-Lite chart, as JSON has it, as an SVG document; None where it could not be drawn: the log says why."""
        asked = json.dumps(spec, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
        with self._lock:
            if (svg := self._drawn.get(asked)) is None:
                svg = self._ask(asked)
                if svg is None:
                    return None
                self._drawn[asked] = svg
                if len(self._drawn) > _KEPT:
                    self._drawn.popitem(last=False)
            self._drawn.move_to_end(asked)
            return svg

    def close(self) -> None:
        """End the process; the next chart would start another."""
        with self._lock:
            self._end()

    def __enter__(self) -> "Artist":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, asked: str) -> str | None:
        try:
            if self._process is None:
                # -P: a file of the user's that is called json.py is not the library's.
                command = [sys.executable, "-P", "-m", "mfu_sdk.provider.artist"]
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
                )
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write(asked.encode() + b"\n")
            answer = _line(stdout, time.monotonic() + self._budget_s)
            found = json.loads(answer)
            if "svg" not in found:
                raise ValueError(found.get("error"))
            return str(found["svg"])
        except (OSError, ValueError) as error:
            log.warning("mfu_sdk: a chart was not drawn (%s); the page goes without it", error)
            self._end()
            return None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # Closes the pipes and waits.
            process.communicate()


def _line(stream: Any, until_s: float) -> bytes:
    """One line of an unbuffered stream. Raises `OSError` where it ends or the time does."""
    found = b""
    while not found.endswith(b"\n"):
        if not select.select([stream], [], [], max(0.0, until_s - time.monotonic()))[0]:
            raise TimeoutError("it took too long")
        part = stream.read(1 << 16)
        if not part:
            raise OSError("the process that draws has ended")
        found += part
    return found


def _draw_what_is_asked() -> None:
    """Answer each line of standard input, a spec, with one line that holds its SVG."""
    import vl_convert

    for asked in sys.stdin.buffer:
        try:
            # No data from anywhere: a spec that names an address is an error.
            answer = {"svg": vl_convert.vegalite_to_svg(json.loads(asked), vl_version=_VEGA_LITE, allowed_base_urls=[])}
        except ValueError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _draw_what_is_asked()
