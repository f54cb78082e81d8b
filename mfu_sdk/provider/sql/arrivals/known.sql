-- What is stored already of these traces. A retry repeats the span's start as well as its ids, and the start finds the
-- few granules to look at.
SELECT toString(mfu_tenant_id), TraceId, SpanId FROM otel.otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({first:Int64}) AND Timestamp <= fromUnixTimestamp64Nano({last:Int64})
    AND TraceId IN ($traces)
