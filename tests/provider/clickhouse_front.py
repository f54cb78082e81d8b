"""ClickHouse's HTTP interface over the embedded engine, as a program: `python clickhouse_front.py DIR [PORT]`.

There is no ClickHouse server for these tests to be had. This stands in for its door, not for its engine: real HTTP, and
behind it the engine itself, in a process of its own. It speaks as clickhouse.com/docs/interfaces/http has it: the
statement in `query` or the body, `param_*`, `default_format`, `database`, settings, users, gzip both ways, exceptions
with X-ClickHouse-Exception-Code, X-ClickHouse-Summary, and the server's own limits on an address and its parameters.

FRONT_USER and FRONT_PASSWORD say who may ask. `POST /_test?lose=N` has the next N inserts done and their connection
closed without an answer; `…&refuse=N` has N inserts answered by 503, as by a proxy, and not done.
"""

import gzip
import json
import os
import re
import ssl
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from chdb.session import Session

OF_HTTP = {
    "query", "database", "default_format", "enable_http_compression", "wait_end_of_query", "user", "password",
    "session_id", "query_id", "compress", "decompress", "buffer_size",
}  # fmt: skip
MAX_ADDRESS, MAX_VALUE = 1_048_576, 131_072
STATUS = {62: 400, 36: 400, 47: 404, 60: 404, 81: 404, 115: 404, 497: 403, 516: 403, 241: 500}


class Front(BaseHTTPRequestHandler):
    """One connection; each request has a session of its own, as on a server."""

    protocol_version = "HTTP/1.1"
    place = ""
    faults: ClassVar[dict[str, int]] = {"lose": 0, "refuse": 0}
    told: ClassVar[list[str]] = []
    lock = threading.Lock()

    def do_GET(self) -> None:
        self.asked(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)

    def asked(self, body: bytes) -> None:
        if len(self.path) > MAX_ADDRESS:
            return self.refuse(414, 0, "URI too long")
        address = urllib.parse.urlsplit(self.path)
        given = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        if address.path == "/ping":
            return self.answer(200, b"Ok.\n", {})
        if address.path == "/_test":
            with self.lock:
                self.faults.update({name: int(value) for name, value in given.items()})
            return self.answer(200, json.dumps(self.told).encode(), {})
        if any(len(value) > MAX_VALUE for value in given.values()):
            return self.refuse(400, 36, "Code: 36. DB::Exception: Too long value of a parameter")
        whom = (self.headers.get("X-ClickHouse-User", "default"), self.headers.get("X-ClickHouse-Key", ""))
        if whom != (os.environ.get("FRONT_USER", "default"), os.environ.get("FRONT_PASSWORD", "")):
            return self.refuse(403, 516, f"Code: 516. DB::Exception: {whom[0]}: Authentication failed: wrong password")
        insert = re.fullmatch(r"\s*(INSERT INTO .*?)\s+FORMAT\s+(\w+)\s*", given.get("query", ""), re.DOTALL)
        if insert and self.fault("refuse"):
            return self.answer(503, b"<html>no upstream</html>", {})
        try:
            data, rows = self.run(given, insert, body)
        except (RuntimeError, UnicodeDecodeError) as error:
            code = int(found[1]) if (found := re.search(r"Code: (\d+)", str(error))) else 1
            return self.refuse(STATUS.get(code, 500), code, str(error))
        if insert and self.fault("lose"):
            self.close_connection = True
            return None
        summary = json.dumps({"read_rows": "0", "written_rows": str(rows)})
        return self.answer(200, data, {"X-ClickHouse-Summary": summary})

    def run(self, given: dict[str, str], insert: re.Match[str] | None, body: bytes) -> tuple[bytes, int]:
        session: Any = Session(self.place)  # type: ignore[no-untyped-call]  # chDB ships no types
        try:
            if database := given.get("database"):
                session.query(f"USE `{database}`")
            for name, value in given.items():
                if name not in OF_HTTP and not name.startswith("param_"):
                    written = value.replace("\\", "\\\\").replace("'", "\\'")
                    session.query(f"SET {name} = '{written}'")
            if insert:
                with self.lock:
                    self.told.append(insert[1].split("(")[0].strip())
                with session.send_insert(insert[1], insert[2]) as inserter:
                    inserter.append(body)
                    return b"", inserter.finish().rows_written
            values = {name[6:]: value for name, value in given.items() if name.startswith("param_")}
            statement = " ".join(filter(None, (given.get("query", ""), body.decode())))
            answer = session.query(statement, given.get("default_format", "TabSeparated"), params=values or None)
            return bytes(answer.bytes() or b""), 0
        finally:
            session.close()

    def fault(self, name: str) -> bool:
        with self.lock:
            if not self.faults[name]:
                return False
            self.faults[name] -= 1
            return True

    def refuse(self, status: int, code: int, why: str) -> None:
        self.answer(status, why.encode(), {"X-ClickHouse-Exception-Code": str(code)} if code else {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if "gzip" in self.headers.get("Accept-Encoding", "") and "enable_http_compression=1" in self.path:
            body, headers = gzip.compress(body, 1), {**headers, "Content-Encoding": "gzip"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def main() -> None:
    """Serve until killed; the port is printed once it listens."""
    Front.place = sys.argv[1]
    kept: Any = Session(Front.place)  # type: ignore[no-untyped-call]  # chDB ships no types
    kept.query("SELECT 1")
    front = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Front)
    front.daemon_threads = True
    if pem := os.environ.get("FRONT_PEM"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        front.socket = context.wrap_socket(front.socket, server_side=True)
    print(front.server_port, flush=True)
    front.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
