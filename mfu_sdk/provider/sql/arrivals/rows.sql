-- The spans of the requests that the engine could read, but for those that are stored already ($known).
SELECT
    fromUnixTimestamp64Nano(toInt64(start_unix_ns)), TraceId, SpanId, ParentSpanId, TraceState, SpanName, SpanKind,
    ServiceName, ResourceAttributes, ScopeName, ScopeVersion, SpanAttributes, Duration, StatusCode, StatusMessage
FROM $spans
WHERE flaw = 0 AND start_unix_ns >= {oldest:UInt64} AND start_unix_ns <= {newest:UInt64}
    AND number IN {numbers:Array(UInt32)}
    AND (tenant, TraceId, SpanId) NOT IN ($known)
