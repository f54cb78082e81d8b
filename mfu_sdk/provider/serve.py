"""The provider's daemon: one process that receives OTLP, owns the store, and serves the page and its JSON."""

import asyncio
import base64
import binascii
import contextlib
import errno
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mfu_sdk.errors import ConfigurationError, MissingDependencyError, PortInUseError, StoreAwayError, StoreError
from mfu_sdk.guard import log
from mfu_sdk.provider import baseline, findings, fleet, pages, receive, report
from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.books import Books, Holdings, Inventory, Snapshot
from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.credentials import Credentials, Identity, is_loopback
from mfu_sdk.provider.fleet import Gpu
from mfu_sdk.provider.pages.routes import HEADERS, Reader
from mfu_sdk.provider.pages.slow import Slow
from mfu_sdk.provider.receive import Limits
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range, Usage
from mfu_sdk.provider.schema import Retention
from mfu_sdk.provider.shared import Levels
from mfu_sdk.provider.store import Place, Store

if TYPE_CHECKING:
    from mfu_sdk.provider.receive.grpc import GrpcServer

Address = tuple[str, int]
Tls = tuple[str | os.PathLike[str], str | os.PathLike[str]]

_GRACE_S: Final = 5
_MOST_BYTES: Final = 16_384
_AWAY: Final = (
    "the ClickHouse server that holds the fleet's telemetry does not answer; try again soon. Nothing is lost by it:"
    " whoever sends is told to keep what it has\n"
)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens: OTLP on `http` and `grpc`, page and JSON on `web`; (host, port), the port as bound."""

    http: Address
    web: Address
    grpc: Address | None = None
    tls: bool = False


class Server:
    """A provider over `place`, a directory or a ClickHouse server. Port 0 takes a free one, known once this is made.

    `prices` and `inventory` are the provider's books, files or directories, read again when they change.
    `retention` says for how long rows are kept, from now on; the store's own word holds where it is None. `grpc` None:
    no gRPC. `tls` is a certificate's file and its key's, for every address. `now_unix_ns` is the clock that ranges and
    the times of spans are held against, `clock` the one of rates, in seconds.

    Raises `ConfigurationError` for an address beyond loopback without `tokens`, or for a bad tokens file or book,
    `PortInUseError` for an address that is taken, and `StoreError` for a store that cannot be opened.
    """

    def __init__(
        self,
        place: Place,
        *,
        http: Address = ("127.0.0.1", 4318),
        web: Address = ("127.0.0.1", 8080),
        grpc: Address | None = None,
        tokens: str | os.PathLike[str] | None = None,
        prices: Sequence[str | os.PathLike[str]] = (),
        inventory: Sequence[str | os.PathLike[str]] = (),
        retention: Retention | None = None,
        tls: Tls | None = None,
        limits: Limits | None = None,
        now_unix_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        addresses = [http, web] if grpc is None else [http, web, grpc]
        for host, _ in addresses:
            if tokens is None and not is_loopback(host):
                raise ConfigurationError(
                    f"{host}: without a tokens file only loopback is served; give --tokens FILE or listen on 127.0.0.1"
                )
        credentials = Credentials(None if tokens is None else Path(tokens), lambda: now_unix_ns() / 1e9)
        books = Books(map(Path, prices), map(Path, inventory))
        pem = None if tls is None else _pem(tls)
        with contextlib.ExitStack() as undo:
            self._sockets = [undo.enter_context(_bind(address)) for address in (http, web)]
            self.http_address, self.web_address = (_address(bound) for bound in self._sockets)
            self._store = undo.enter_context(Store(place))
            if retention is not None:
                self._store.retain(retention)
            self._intake = receive.Intake(self._store, credentials, limits or Limits(), now_unix_ns, clock)
            undo.callback(self._intake.close)
            self._grpc = None if grpc is None else _grpc(self._intake, grpc, pem)
            undo.pop_all()
        self.grpc_address = None if self._grpc is None else self._grpc.address
        self._artist = Artist()
        routes = [
            receive.routes(self._intake),
            _web_routes(self._store, self._intake, self._artist, credentials, books, now_unix_ns),
        ]
        apps: list[ASGIApp] = [
            Starlette(routes=routes[0]),
            GZipMiddleware(Starlette(routes=routes[1]), minimum_size=1024),
        ]
        self._tls = tls
        self._servers = [_server(app, tls, loopback_only=tokens is None) for app in apps]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()

    def serve_until_stopped(self, on_ready: Callable[[Addresses], None] | None = None) -> None:
        """Serve until SIGINT, SIGTERM or `stop`, then finish open requests and close the store.

        `on_ready` is called once, when both addresses answer. Signals are handled where this runs in the main thread.
        """
        try:
            asyncio.run(self._serve(on_ready))
        finally:
            self.close()

    def stop(self) -> None:
        """Ask `serve_until_stopped` to return; may be called from any thread, before or after it began."""
        self._stopping.set()
        loop = self._loop
        if loop is not None:
            # A loop that has ended meanwhile has stopped already.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._ask_to_exit)

    def close(self) -> None:
        """Give up sockets and store, for a server that never served; a second call does nothing."""
        for bound in self._sockets:
            bound.close()
        self._artist.close()
        if self._grpc is not None:
            self._grpc.stop(0.0)
        self._intake.close()
        self._store.close()

    async def _serve(self, on_ready: Callable[[Addresses], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        with _signals(self._loop, self._ask_to_exit):
            if self._stopping.is_set():
                return
            tasks = [
                asyncio.create_task(server.serve(sockets=[bound]))
                for server, bound in zip(self._servers, self._sockets, strict=True)
            ]
            if self._grpc is not None:
                self._grpc.start(self._loop)
            try:
                while not all(server.started for server in self._servers):
                    if any(task.done() for task in tasks):
                        break
                    await asyncio.sleep(0.01)
                else:
                    if on_ready is not None:
                        tls = self._tls is not None
                        on_ready(Addresses(self.http_address, self.web_address, self.grpc_address, tls))
                await asyncio.gather(*tasks)
            finally:
                self._ask_to_exit()
                if self._grpc is not None:
                    await asyncio.to_thread(self._grpc.stop, _GRACE_S)
                await asyncio.gather(*tasks, return_exceptions=True)

    def _ask_to_exit(self) -> None:
        self._stopping.set()
        for server in self._servers:
            server.should_exit = True


def serve(
    place: Place,
    *,
    http: Address = ("127.0.0.1", 4318),
    web: Address = ("127.0.0.1", 8080),
    grpc: Address | None = None,
    tokens: str | os.PathLike[str] | None = None,
    prices: Sequence[str | os.PathLike[str]] = (),
    inventory: Sequence[str | os.PathLike[str]] = (),
    tls: Tls | None = None,
    limits: Limits | None = None,
    on_ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Run a `Server` until it is told to stop. Raises what `Server` raises, before anything is listened on."""
    server = Server(
        place, http=http, web=web, grpc=grpc, tokens=tokens, prices=prices, inventory=inventory, tls=tls,
        limits=limits,
    )  # fmt: skip
    server.serve_until_stopped(on_ready)


# --- sockets and signals -------------------------------------------------------------------------------------------


def _bind(address: Address) -> socket.socket:
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"{shown}: a port must lie between 0 and 65535; 0 takes a free one")
    try:
        bound = socket.create_server(address, family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(f"{shown}: is taken by another program; stop it, or choose another port") from None
        raise ConfigurationError(f"{shown}: cannot be listened on ({error}); give an address of this machine") from None
    return bound


def _address(bound: socket.socket) -> Address:
    host, port = bound.getsockname()[:2]
    return host, port


def _pem(tls: Tls) -> tuple[bytes, bytes]:
    """Key and chain of certificates, looked at now, so that a slip does not wait for the first request."""
    certificate, key = tls
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        return Path(key).read_bytes(), Path(certificate).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{certificate}, {key}: no certificate and its key ({error}); give both as PEM, the key without a password"
        ) from error


def _grpc(intake: receive.Intake, address: Address, pem: tuple[bytes, bytes] | None) -> "GrpcServer":
    try:
        from mfu_sdk.provider.receive.grpc import GrpcServer
    except ImportError as error:
        raise MissingDependencyError(
            "grpcio: OTLP over gRPC needs it; install it with: pip install 'mfu-sdk[provider]'"
        ) from error
    return GrpcServer(intake, address, pem)


def _server(app: ASGIApp, tls: Tls | None, *, loopback_only: bool) -> uvicorn.Server:
    certificate, key = (None, None) if tls is None else tls
    config = uvicorn.Config(
        _LoopbackNames(app) if loopback_only else app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        # Who a client is must not be read from a header that the client writes.
        proxy_headers=False,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=None if key is None else os.fspath(key),
        timeout_graceful_shutdown=_GRACE_S,
    )
    return _Quiet(config)


class _Quiet(uvicorn.Server):
    """A server that leaves signals to its owner: two run in one loop, and each would take them from the other."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


class _LoopbackNames:
    """Refuses requests that name another host: a web page elsewhere could point its own name at 127.0.0.1."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Request(scope).url.hostname
            if not is_loopback(host):
                refused = PlainTextResponse("without a tokens file only loopback is served, by its own name\n", 403)
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


# --- the page and its JSON -----------------------------------------------------------------------------------------


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _web_routes(
    store: Store,
    intake: receive.Intake,
    artist: Artist,
    credentials: Credentials,
    books: Books,
    now_unix_ns: Callable[[], int],
) -> list[Route]:
    kept = findings.Findings(store)
    judged = Slow[findings.Judged](now_unix_ns)
    watched = Slow[tuple[Gpu, ...]](now_unix_ns)
    read: list[tuple[Inventory, Holdings]] = []

    def holdings() -> Holdings | None:
        inventory = books.current().inventory
        if inventory is None:
            return None
        if not read or read[0][0] is not inventory:
            # The same for as long as the book is: its lists are sorted once, and what was judged by it holds.
            read[:] = [(inventory, Holdings(inventory))]
        return read[0][1]

    levels = Levels(store, holdings)

    def whole(identity: Identity) -> bool:
        """Whether the whole fleet is theirs to see: an operator, or whom loopback alone lets in."""
        return identity.operator or credentials.path is None

    def seen(request: Request) -> Snapshot | None:
        """The books, for whom the whole fleet is theirs to see."""
        is_whole = whole(_identity(request, credentials)) and not request.query_params.get("tenant")
        return books.current() if is_whole else None

    def reader(request: Request) -> Reader:
        identity = _identity(request, credentials)
        asked = _tenant(identity, request.query_params.get("tenant"))
        # An operator may read everything; the tenant that one asks for is a filter.
        return Reader(identity.name, None if identity.operator else asked, identity.operator, whole(identity))

    def build(span: Range, tenant: str | None, gpu_type: str | None, is_whole: bool) -> Report:
        held = books.current() if is_whole else None
        inventory, drifts = holdings(), kept.drifts(span)

        def judge(usages: Sequence[Usage], contests: Sequence[Contested]) -> findings.Judged:
            return judged.get(
                tenant, span, inventory, lambda: findings.judge(store, span, inventory, drifts, usages, contests)
            )

        def gpus() -> tuple[Gpu, ...]:
            return watched.get(tenant, span, inventory, lambda: fleet.gpus(store, span, inventory))

        return report.build(
            store, span, tenant, held, inventory, gpu_type=gpu_type, judge=judge, gpus=gpus, levels=levels,
            now_unix_ns=now_unix_ns(),
        )  # fmt: skip

    def findings_of(span: Range, tenant: str | None) -> tuple[findings.Kept, ...]:
        kept.judge(span, holdings(), now_unix_ns())
        return kept.kept(span, tenant)

    def api(request: Request) -> Response:
        tenant = _tenant(_identity(request, credentials), request.query_params.get("tenant"))
        query, now = request.query_params, now_unix_ns()
        span = report.parse_range(query.get("since"), query.get("until"), now)
        gpu_type = query.get("gpu_type") or None
        built = report.build(
            store, span, tenant, seen(request), holdings(), kept.drifts(span), gpu_type=gpu_type, levels=levels,
            now_unix_ns=now,
        )  # fmt: skip
        return Response(report.to_json(built), media_type="application/json", headers=HEADERS)

    def focus(request: Request) -> Response:
        query = request.query_params
        held = seen(request)
        if held is None:
            raise _RefusedError(403, "the money of the whole fleet is for operators; ask with an operator's token")
        span = report.parse_range(query.get("since"), query.get("until"), now_unix_ns())
        return Response(report.focus(store, span, held), media_type="text/csv", headers=HEADERS)

    def baselines(request: Request) -> Response:
        tenant = _tenant(_identity(request, credentials), request.query_params.get("tenant"))
        query = request.query_params
        span = report.parse_range(query.get("since", "30d"), query.get("until"), now_unix_ns())
        fingerprint = query.get("fingerprint")
        runs = baseline.reached(store, fingerprint, span, tenant)
        text = baseline.to_json(fingerprint or "", runs, baseline.learnt(store, fingerprint or "", span, tenant))
        return Response(text, media_type="application/json", headers=HEADERS)

    def found(request: Request) -> Response:
        tenant = _tenant(_identity(request, credentials), request.query_params.get("tenant"))
        query = request.query_params
        span = report.parse_range(query.get("since"), query.get("until"), now_unix_ns())
        text = findings.to_json(findings_of(span, tenant))
        return Response(text, media_type="application/json", headers=HEADERS)

    async def decide(request: Request) -> Response:
        # A page elsewhere cannot make a browser send this type without asking first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("send application/json\n", 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BYTES:
                return PlainTextResponse(f"more than {_MOST_BYTES} bytes; send state and note only\n", 413)
        return await _answering(lambda asked: _decided(asked, body))(request)

    def _decided(request: Request, body: bytes) -> Response:
        identity = _identity(request, credentials)
        # Without a tokens file there is nobody on this machine but its owner.
        if not identity.operator and credentials.path is not None:
            raise _RefusedError(403, "an operator decides about findings; ask with an operator's token")
        try:
            asked = json.loads(body)
            state, note = str(asked["state"]), str(asked.get("note", ""))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _RefusedError(400, 'send {"state": "acknowledged", "note": "why"}') from None
        try:
            now = kept.decide(request.path_params["finding_id"], state, identity.name, note, now_unix_ns())
        except KeyError:
            raise _RefusedError(404, "no such finding; GET /api/findings tells their ids") from None
        return Response(findings.one_to_json(now), media_type="application/json", headers=HEADERS)

    def received(request: Request) -> Response:
        tenant = _tenant(_identity(request, credentials), request.query_params.get("tenant"))
        return JSONResponse(intake.counts(tenant), headers=HEADERS)

    def healthz(_: Request) -> Response:
        store.query("SELECT 1")
        return PlainTextResponse("ok\n")

    return [
        *pages.routes(store, build, artist, findings_of, reader, _answering, now_unix_ns),
        Route("/api/report", _answering(api)),
        Route("/api/focus", _answering(focus)),
        Route("/api/baseline", _answering(baselines)),
        Route("/api/findings", _answering(found)),
        Route("/api/findings/{finding_id}/state", decide, methods=["POST"]),
        Route("/api/received", _answering(received)),
        Route("/healthz", _answering(healthz)),
    ]


def _answering(answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, request)
        except _RefusedError as refused:
            headers: dict[str, str] = {"WWW-Authenticate": 'Basic realm="mfu", charset="UTF-8"'}
            return PlainTextResponse(f"{refused}\n", refused.status, headers if refused.status == 401 else None)
        except ConfigurationError as error:
            return PlainTextResponse(f"{error}\n", 400)
        except StoreAwayError as error:
            log.error("mfu_sdk: %s", error)
            return PlainTextResponse(_AWAY, 503, {"Retry-After": "5"})
        except StoreError as error:
            log.error("mfu_sdk: the store could not be read: %s", error)
            return PlainTextResponse("the store could not be read; see the server's log\n", 503)

    return endpoint


def _identity(request: Request, credentials: Credentials) -> Identity:
    client = request.client.host if request.client else None
    identity = credentials.identify(_token(request.headers.get("authorization", "")), client)
    if identity is None:
        raise _RefusedError(401, "no known token: send `Authorization: Bearer TOKEN`, or TOKEN as the password")
    if identity.provider:
        raise _RefusedError(403, "a token of `providers` sends, and reads nothing; ask with an operator's")
    return identity


def _token(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        # For browsers: whatever the user name, the token is the password.
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    return None


def _tenant(identity: Identity, asked: str | None) -> str | None:
    if identity.operator:
        return asked or None
    if asked not in (None, "", identity.name):
        raise _RefusedError(403, f"{identity.name} sees {identity.name} only; ask without `tenant`")
    return identity.name
