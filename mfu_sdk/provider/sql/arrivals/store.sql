-- The spans of the requests that the engine could read, but for those that are stored already. A retry repeats the
-- span's start as well as its ids, and the start finds the few granules to look at.
INSERT INTO otel.otel_traces (
    Timestamp, TraceId, SpanId, ParentSpanId, TraceState, SpanName, SpanKind, ServiceName, ResourceAttributes,
    ScopeName, ScopeVersion, SpanAttributes, Duration, StatusCode, StatusMessage
)
SELECT
    fromUnixTimestamp64Nano(toInt64(start_unix_ns)), TraceId, SpanId, ParentSpanId, TraceState, SpanName, SpanKind,
    ServiceName, ResourceAttributes, ScopeName, ScopeVersion, SpanAttributes, Duration, StatusCode, StatusMessage
FROM $spans
WHERE flaw = 0 AND start_unix_ns >= {oldest:UInt64} AND start_unix_ns <= {newest:UInt64}
    AND number IN {numbers:Array(UInt32)}
    AND (tenant, TraceId, SpanId) NOT IN (
        SELECT mfu_tenant_id, TraceId, SpanId FROM otel.otel_traces
        WHERE Timestamp >= fromUnixTimestamp64Nano({first:Int64})
            AND Timestamp <= fromUnixTimestamp64Nano({last:Int64})
            AND TraceId IN (SELECT TraceId FROM $spans)
    )
