"""What both protocols do with a request: who sent it, whether it may, its rows into the store, what to answer."""

import asyncio
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.concurrency import run_in_threadpool

from mfu_sdk.errors import StoreAwayError, StoreError
from mfu_sdk.guard import log
from mfu_sdk.provider.arrivals import Arrival, Arrivals, TooMuchError
from mfu_sdk.provider.credentials import PROVIDER, Credentials
from mfu_sdk.provider.receive.groups import Groups
from mfu_sdk.provider.receive.limits import Limits, Rate, Workloads
from mfu_sdk.provider.receive.otlp import (
    Encoding,
    UndecodableError,
    decode_logs,
    decode_metrics,
    decode_traces,
    in_words,
    time_bounds,
)
from mfu_sdk.provider.store import Store

Refusal = Literal["unknown", "forbidden", "unreadable", "unsupported", "too large", "too fast", "unavailable"]

_PLACES: Final = 2
_AWAY_S: Final = 5
_PIECE_BYTES: Final = 1024


class RefusedError(Exception):
    """A request of which nothing is kept: of which kind the refusal is, why, and when to try again (seconds)."""

    def __init__(self, kind: Refusal, reason: str, retry_s: int | None = None) -> None:
        super().__init__(reason)
        self.kind: Refusal = kind
        self.retry_s = retry_s


@dataclass(frozen=True, slots=True)
class Taken:
    """What was made of a request: items that are on disk, those rejected and what was changed in the rest."""

    stored: int
    rejected: Mapping[str, int]
    notes: Mapping[str, int]

    def traces_response(self) -> ExportTraceServiceResponse:
        """The answer to an ExportTraceServiceRequest."""
        made = ExportTraceServiceResponse()
        if self.rejected or self.notes:
            made.partial_success.rejected_spans = sum(self.rejected.values())
            made.partial_success.error_message = self._words()
        return made

    def metrics_response(self) -> ExportMetricsServiceResponse:
        """The answer to an ExportMetricsServiceRequest."""
        made = ExportMetricsServiceResponse()
        if self.rejected or self.notes:
            made.partial_success.rejected_data_points = sum(self.rejected.values())
            made.partial_success.error_message = self._words()
        return made

    def logs_response(self) -> ExportLogsServiceResponse:
        """The answer to an ExportLogsServiceRequest."""
        made = ExportLogsServiceResponse()
        if self.rejected or self.notes:
            made.partial_success.rejected_log_records = sum(self.rejected.values())
            made.partial_success.error_message = self._words()
        return made

    def _words(self) -> str:
        return "; ".join(in_words(counts) for counts in (self.rejected, self.notes) if counts)


class Intake:
    """The one way in. `now_unix_ns` bounds the times that spans may claim; `clock` gives seconds, for rates."""

    def __init__(
        self,
        store: Store,
        credentials: Credentials,
        limits: Limits,
        now_unix_ns: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._credentials = credentials
        kept_days = store.spans_kept_days
        self.limits = limits if kept_days is None else replace(limits, span_days=min(kept_days, limits.span_days))
        self._now_unix_ns = now_unix_ns
        self._rate = Rate(limits.spans_per_s, clock)
        known = store.query("SELECT DISTINCT tenant, workload FROM otel.mfu_sums_5m")
        self._workloads = Workloads(
            limits.workloads, [(row["tenant"], row["workload"]) for row in known], lambda: now_unix_ns() / 1e9
        )
        places = [
            Arrivals(
                store,
                slot,
                limits.attributes,
                lambda tenant, names: not self._workloads.admit(tenant, names),
                oldest_days=self.limits.span_days,
            )
            for slot in range(_PLACES)
        ]
        self._groups = Groups(places, lambda: time_bounds(now_unix_ns(), self.limits.span_days))
        self._counts_lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}

    def close(self) -> None:
        """Store what waits; a second call does nothing."""
        self._groups.close()

    def counts(self, tenant: str | None = None) -> dict[str, dict[str, int]]:
        """What came of what was sent since the start, by tenant ("" where that is not known), or of one."""
        with self._counts_lock:
            return {
                name: dict(sorted(counts.items()))
                for name, counts in sorted(self._counts.items())
                if tenant in (None, name)
            }

    async def tenant(self, authorization: str, client_host: str | None) -> str:
        """Whose the bearer's token is. Raises `RefusedError` where it is nobody's or may not send."""
        scheme, _, token = authorization.partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else None
        identity = await run_in_threadpool(self._credentials.identify, bearer, client_host)
        if identity is None:
            raise self.refused("", RefusedError("unknown", "no known token; send `Authorization: Bearer TOKEN`"))
        if identity.operator:
            raise self.refused("", RefusedError("forbidden", "an operator's token reads; send with a tenant's"))
        if wait_s := self._rate.wait_s(identity.name):
            reason = f"more than {self.limits.spans_per_s:g} spans a second; send again in {wait_s} s"
            raise self.refused(identity.name, RefusedError("too fast", reason, wait_s))
        return identity.name

    async def traces(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        """Store the spans of a request. Raises `RefusedError`."""
        if tenant.startswith(PROVIDER):
            reason = "a token of `providers` sends metrics of the hardware; spans need a tenant's"
            raise self.refused(tenant, RefusedError("forbidden", reason))
        return await self._take(tenant, self._traces(tenant, body, encoding))

    async def metrics(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        """Store the points of a request. Raises `RefusedError`."""
        return await self._take(tenant, run_in_threadpool(self._metrics, tenant, body, encoding))

    async def logs(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        """Store the log records of a request. Raises `RefusedError`."""
        return await self._take(tenant, run_in_threadpool(self._logs, tenant, body, encoding))

    async def _take(self, tenant: str, work: Awaitable[Taken]) -> Taken:
        try:
            taken = await work
        except UndecodableError as error:
            self._rate.spend(tenant, 1)
            raise self.refused(tenant, RefusedError("unreadable", str(error))) from error
        except TooMuchError as error:
            self._rate.spend(tenant, 1)
            raise self.refused(tenant, RefusedError("too large", str(error))) from error
        except StoreError as error:
            log.error("mfu_sdk: a request was not stored: %s", error)
            if isinstance(error, StoreAwayError):
                refused = RefusedError("unavailable", "the store does not answer; keep it and send it again", _AWAY_S)
            else:
                refused = RefusedError("unavailable", "the store took nothing; send it again", 1)
            raise self.refused(tenant, refused) from error
        self._rate.spend(tenant, taken.stored + sum(taken.rejected.values()))
        with self._counts_lock:
            counts = self._counts.setdefault(tenant, Counter())
            counts["stored"] += taken.stored
            for what, n in (*taken.rejected.items(), *taken.notes.items()):
                counts[what] += n
        return taken

    async def _traces(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        if encoding == "protobuf":
            waiting = self._groups.submit(Arrival(tenant, body))
            if waiting is None:
                raise StoreError("more is waiting to be stored than may wait")
            outcome = await asyncio.wrap_future(waiting)
            if isinstance(outcome, StoreError):
                raise outcome
            if outcome is not None:
                return Taken(outcome.spans, outcome.rejected, outcome.notes)
        return await run_in_threadpool(self._decoded, tenant, body, encoding)

    def _decoded(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        now = self._now_unix_ns()
        decoded = decode_traces(
            body, encoding, tenant, now, self.limits, lambda names: self._workloads.admit(tenant, names)
        )
        self._store.insert_spans(tenant, decoded.rows)
        return Taken(len(decoded.rows), decoded.rejections, decoded.notes)

    def _metrics(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        decoded = decode_metrics(body, encoding, tenant, self._now_unix_ns(), self.limits)
        self._store.insert_points(decoded.rows)
        return Taken(len(decoded.rows), decoded.rejections, decoded.notes)

    def _logs(self, tenant: str, body: bytes, encoding: Encoding) -> Taken:
        decoded = decode_logs(body, encoding, tenant, self._now_unix_ns(), self.limits)
        self._store.insert_logs(decoded.rows)
        return Taken(len(decoded.rows), decoded.rejections, decoded.notes)

    def refused(self, tenant: str, error: RefusedError) -> RefusedError:
        """`error`, counted."""
        with self._counts_lock:
            self._counts.setdefault(tenant, Counter())[f"requests refused: {error.kind}"] += 1
        return error


def unpacked(packed: bytes, coding: str, limit: int) -> bytes:
    """A body as it was before it was packed; little more than `limit` is unpacked, whatever a few bytes hold."""
    try:
        body = _gunzipped(packed, limit) if coding == "gzip" else _decompressed(packed, limit)
    except (zlib.error, zstandard.ZstdError) as error:
        raise RefusedError("unreadable", f"not {coding} ({error})") from error
    if len(body) > limit:
        raise RefusedError("too large", f"more than {limit} bytes once unpacked; send smaller batches")
    return body


def _gunzipped(packed: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    body = unpacker.decompress(packed, limit + 1)
    if len(body) <= limit and (not unpacker.eof or unpacker.unused_data):
        raise RefusedError("unreadable", "not one whole gzip member")
    return body


def _decompressed(packed: bytes, limit: int) -> bytes:
    # 8 MiB: the largest window that "zstd" may ask for as a content coding (RFC 9659).
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**23).decompressobj()
    parts, size = [], 0
    # Four bytes can stand for 128 KiB: in small pieces, what they unpack to is seen before it is too much.
    for at in range(0, len(packed), _PIECE_BYTES):
        if unpacker.eof:
            raise RefusedError("unreadable", "not one whole zstd frame")
        parts.append(unpacker.decompress(packed[at : at + _PIECE_BYTES]))
        size += len(parts[-1])
        if size > limit:
            return b"".join(parts)
    if not unpacker.eof or unpacker.unused_data:
        raise RefusedError("unreadable", "not one whole zstd frame")
    return b"".join(parts)
