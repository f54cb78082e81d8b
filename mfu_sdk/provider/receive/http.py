"""The OTLP/HTTP endpoint: POST /v1/traces, /v1/metrics and /v1/logs, in protobuf or JSON; plain, gzip or zstd.

Accepted means stored: 200 is answered after the rows are on disk. What a client should send again is answered 429 or
503 with Retry-After, what it should not is answered 4xx (opentelemetry.io/docs/specs/otlp, "Failures"). An operator's
token reads; it is refused here, because a span has to belong to a tenant. A collector of the provider's own sends
metrics and no spans.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from google.protobuf import json_format  # type: ignore[import-untyped]  # protobuf ships no types
from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # generated, ships no types
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mfu_sdk.provider.receive.intake import Intake, Refusal, RefusedError, unpacked
from mfu_sdk.provider.receive.otlp import Encoding

_CONTENT_TYPES: Final[dict[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
_MEDIA: Final[dict[Encoding, str]] = {encoding: media for media, encoding in _CONTENT_TYPES.items()}
# HTTP's status, and google.rpc.Code, which the specification asks for in the body of every 4xx and 5xx.
_CODES: Final[dict[Refusal, tuple[int, int]]] = {
    "unreadable": (400, 3),
    "unknown": (401, 16),
    "forbidden": (403, 7),
    "too large": (413, 11),
    "unsupported": (415, 3),
    "too fast": (429, 8),
    "unavailable": (503, 14),
}

Accept = Callable[[str, bytes, Encoding], Awaitable[Message]]


def routes(intake: Intake) -> list[Route]:
    """The three routes of OTLP/HTTP."""

    async def traces(tenant: str, body: bytes, encoding: Encoding) -> Message:
        return (await intake.traces(tenant, body, encoding)).traces_response()

    async def metrics(tenant: str, body: bytes, encoding: Encoding) -> Message:
        return (await intake.metrics(tenant, body, encoding)).metrics_response()

    async def logs(tenant: str, body: bytes, encoding: Encoding) -> Message:
        return (await intake.logs(tenant, body, encoding)).logs_response()

    return [
        Route("/v1/traces", _endpoint(intake, traces), methods=["POST"]),
        Route("/v1/metrics", _endpoint(intake, metrics), methods=["POST"]),
        Route("/v1/logs", _endpoint(intake, logs), methods=["POST"]),
    ]


def _endpoint(intake: Intake, accept: Accept) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = _CONTENT_TYPES.get(content_type, "protobuf")
        try:
            client = request.client.host if request.client else None
            tenant = await intake.tenant(request.headers.get("authorization", ""), client)
            try:
                body = await _body(request, content_type, intake.limits.body_bytes)
            except RefusedError as refused:
                raise intake.refused(tenant, refused) from refused
            message = await accept(tenant, body, encoding)
        except RefusedError as refused:
            return _failure(refused, encoding)
        except ClientDisconnect:
            # Nobody is there to be answered.
            return Response(status_code=400)
        return _answer(200, message, encoding, {})

    return endpoint


async def _body(request: Request, content_type: str, limit: int) -> bytes:
    if content_type not in _CONTENT_TYPES:
        reason = f"content type {content_type!r}: send application/x-protobuf or application/json"
        raise RefusedError("unsupported", reason)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "zstd"):
        raise RefusedError("unsupported", f"content encoding {coding!r}: send gzip, zstd or none")
    packed = bytearray()
    async for chunk in request.stream():
        packed += chunk
        if len(packed) > limit:
            raise RefusedError("too large", f"more than {limit} bytes; send smaller batches")
    if coding == "identity":
        return bytes(packed)
    return await run_in_threadpool(unpacked, bytes(packed), coding, limit)


def _failure(refused: RefusedError, encoding: Encoding) -> Response:
    status, code = _CODES[refused.kind]
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if refused.retry_s is not None:
        headers["Retry-After"] = str(refused.retry_s)
    return _answer(status, Status(code=code, message=str(refused)), encoding, headers)


def _answer(status: int, message: Message, encoding: Encoding, headers: dict[str, str]) -> Response:
    body = (
        json_format.MessageToJson(message, indent=None).encode() if encoding == "json" else message.SerializeToString()
    )
    return Response(body, status, headers, media_type=_MEDIA[encoding])
