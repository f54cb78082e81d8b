"""The OTLP/gRPC endpoint: TraceService and MetricsService, the same requests, credentials and limits as over HTTP.

A refusal's status is the one that the specification names (opentelemetry.io/docs/specs/otlp, "OTLP/gRPC"); where the
client should send again it says when, in a google.rpc.RetryInfo.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]  # protobuf ships no types
from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf ships no types
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # generated, ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # generated, ships no types

from mfu_sdk.errors import PortInUseError
from mfu_sdk.provider.receive.intake import Intake, Refusal, RefusedError

Address = tuple[str, int]
Accept = Callable[[str, bytes], Coroutine[Any, Any, Message]]

_CODES: Final[Mapping[Refusal, grpc.StatusCode]] = {
    "unreadable": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "too large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unsupported": grpc.StatusCode.INVALID_ARGUMENT,
    "too fast": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}
_SERVICE: Final = "opentelemetry.proto.collector"
# Each request that waits for its group takes a thread; what comes beyond that waits in the library.
_THREADS: Final = 64


class GrpcServer:
    """A server that has its address as soon as it is made, and answers once it is started.

    `tls` is a private key and its chain of certificates, as PEM. Raises `PortInUseError`.
    """

    def __init__(self, intake: Intake, address: Address, tls: tuple[bytes, bytes] | None) -> None:
        self._intake = intake
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "provider-grpc")
        self._server = grpc.server(
            self._threads,
            options=[
                ("grpc.max_receive_message_length", intake.limits.body_bytes),
                # A second server on the same port would be given half of this one's requests.
                ("grpc.so_reuseport", 0),
            ],
        )

        async def traces(tenant: str, body: bytes) -> Message:
            return (await intake.traces(tenant, body, "protobuf")).traces_response()

        async def metrics(tenant: str, body: bytes) -> Message:
            return (await intake.metrics(tenant, body, "protobuf")).metrics_response()

        for name, accept in (("trace.v1.TraceService", traces), ("metrics.v1.MetricsService", metrics)):
            # No types for either side of the call: the engine reads the request's bytes as they came.
            export = grpc.unary_unary_rpc_method_handler(self._export(accept))
            handler = grpc.method_handlers_generic_handler(f"{_SERVICE}.{name}", {"Export": export})
            self._server.add_generic_rpc_handlers((handler,))
        host, port = address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                port = self._server.add_insecure_port(shown)
            else:
                port = self._server.add_secure_port(shown, grpc.ssl_server_credentials([tls]))
        except RuntimeError:
            raise PortInUseError(f"{shown}: is taken by another program; stop it, or choose another port") from None
        self.address: Address = (host, port)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer requests, the work of which is done in `loop`."""
        self._loop = loop
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Take no more requests, and return when the open ones are answered, or `grace_s` later."""
        self._server.stop(grace_s).wait()
        self._threads.shutdown()

    def _export(self, accept: Accept) -> Callable[[bytes, Any], bytes]:
        async def answered(said: Mapping[str, Any], peer: str, body: bytes) -> Message:
            tenant = await self._intake.tenant(str(said.get("authorization", "")), _host(peer))
            return await accept(tenant, body)

        def export(body: bytes, context: Any) -> bytes:
            assert self._loop is not None
            said = dict(context.invocation_metadata() or ())
            try:
                work = asyncio.run_coroutine_threadsafe(answered(said, context.peer(), body), self._loop)
                found: bytes = work.result().SerializeToString()
            except RefusedError as refused:
                code = _CODES[refused.kind]
                if refused.retry_s is not None:
                    status = Status(code=code.value[0], message=str(refused))
                    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=refused.retry_s)))
                    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                context.abort(code, str(refused))
                raise
            return found

        return export


def _host(peer: str) -> str | None:
    """The address in gRPC's name of a peer: "ipv4:127.0.0.1:5", "ipv6:%5B::1%5D:5", without the port."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return None
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
