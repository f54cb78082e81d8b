"""The OTLP/HTTP endpoint: POST /v1/traces and /v1/metrics, in protobuf or JSON, plain or gzip.

Accepted means stored: 200 is answered after the rows are on disk. What a client should send again is answered 503,
what it should not is answered 4xx (opentelemetry.io/docs/specs/otlp, "Failures"). An operator's token reads; it is
refused here, because a span has to belong to a tenant. A collector of the provider's own sends metrics and no spans.
"""

import zlib
from collections.abc import Awaitable, Callable
from typing import Final

from google.protobuf import json_format  # type: ignore[import-untyped]  # protobuf ships no types
from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # generated, ships no types
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mfu_sdk.errors import StoreError
from mfu_sdk.guard import log
from mfu_sdk.provider.credentials import Credentials
from mfu_sdk.provider.receive.otlp import Encoding, UndecodableError, decode_metrics, decode_traces
from mfu_sdk.provider.store import Store

MAX_BODY_BYTES: Final = 20 * 1024 * 1024
"""The most that a request may hold, as it comes and once unpacked; the Collector's own default is the same."""

_CONTENT_TYPES: Final[dict[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
_MEDIA: Final[dict[Encoding, str]] = {encoding: media for media, encoding in _CONTENT_TYPES.items()}
# google.rpc.Code, as the specification asks for in the body of every 4xx and 5xx.
_CODES: Final = {400: 3, 401: 16, 403: 7, 413: 11, 415: 3, 503: 14}

Accept = Callable[[bytes, Encoding, str], Message]


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def routes(store: Store, credentials: Credentials, now_unix_ns: Callable[[], int]) -> list[Route]:
    """The two routes of OTLP/HTTP. `now_unix_ns` bounds the times that spans may claim."""

    def traces(body: bytes, encoding: Encoding, tenant: str) -> Message:
        decoded = decode_traces(body, encoding, tenant, now_unix_ns())
        store.insert_spans(tenant, decoded.rows)
        response = ExportTraceServiceResponse()
        if decoded.rejected:
            response.partial_success.rejected_spans = decoded.rejected
            response.partial_success.error_message = decoded.reason
        return response

    def metrics(body: bytes, encoding: Encoding, tenant: str) -> Message:
        decoded = decode_metrics(body, encoding, tenant, now_unix_ns())
        store.insert_points(decoded.rows)
        response = ExportMetricsServiceResponse()
        if decoded.rejected:
            response.partial_success.rejected_data_points = decoded.rejected
            response.partial_success.error_message = decoded.reason
        return response

    return [
        Route("/v1/traces", _endpoint(credentials, traces, of_tenants=True), methods=["POST"]),
        Route("/v1/metrics", _endpoint(credentials, metrics, of_tenants=False), methods=["POST"]),
    ]


def _endpoint(
    credentials: Credentials, accept: Accept, *, of_tenants: bool
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = _CONTENT_TYPES.get(content_type, "protobuf")
        try:
            tenant = await _sender(request, credentials, of_tenants=of_tenants)
            if content_type not in _CONTENT_TYPES:
                raise _RefusedError(
                    415, f"content type {content_type!r}: send application/x-protobuf or application/json"
                )
            body = await _body(request)
            message = await run_in_threadpool(accept, body, encoding, tenant)
        except _RefusedError as refused:
            return _failure(refused.status, str(refused), encoding)
        except UndecodableError as error:
            return _failure(400, str(error), encoding)
        except StoreError as error:
            log.error("mfu_sdk: a request was not stored: %s", error)
            return _failure(503, "the store took nothing; send it again", encoding)
        return _answer(200, message, encoding)

    return endpoint


async def _sender(request: Request, credentials: Credentials, *, of_tenants: bool) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else None
    client = request.client.host if request.client else None
    identity = await run_in_threadpool(credentials.identify, bearer, client)
    if identity is None:
        raise _RefusedError(401, "no known token; send `Authorization: Bearer TOKEN`")
    if identity.operator:
        raise _RefusedError(403, "an operator's token reads; send with a tenant's")
    if identity.provider and of_tenants:
        raise _RefusedError(403, "a token of `providers` sends metrics of the hardware; spans need a tenant's")
    return identity.name


async def _body(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise _RefusedError(415, f"content encoding {encoding!r}: send gzip or none")
    packed = bytearray()
    async for chunk in request.stream():
        packed += chunk
        if len(packed) > MAX_BODY_BYTES:
            raise _RefusedError(413, f"more than {MAX_BODY_BYTES} bytes; send smaller batches")
    return await run_in_threadpool(_unpacked, bytes(packed)) if encoding == "gzip" else bytes(packed)


def _unpacked(packed: bytes) -> bytes:
    # Never more than the limit is unpacked, whatever a few bytes may claim to hold.
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        body = unpacker.decompress(packed, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise _RefusedError(400, f"not gzip ({error})") from error
    if len(body) > MAX_BODY_BYTES:
        raise _RefusedError(413, f"more than {MAX_BODY_BYTES} bytes once unpacked; send smaller batches")
    if not unpacker.eof or unpacker.unused_data:
        raise _RefusedError(400, "not one whole gzip member")
    return body


def _failure(status: int, reason: str, encoding: Encoding) -> Response:
    return _answer(status, Status(code=_CODES[status], message=reason), encoding)


def _answer(status: int, message: Message, encoding: Encoding) -> Response:
    body = (
        json_format.MessageToJson(message, indent=None).encode() if encoding == "json" else message.SerializeToString()
    )
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status == 503 else None
    return Response(body, status, headers, media_type=_MEDIA[encoding])
