-- What a group holds, request by request. Where `kept` of all requests is not `distinct_spans`, two of them, or one
-- twice, hold the same span.
WITH multiIf(flaw != 0, flaw, start_unix_ns < {oldest:UInt64} OR start_unix_ns > {newest:UInt64}, 4, 0) AS why
SELECT
    number,
    any(tenant) AS tenant,
    min(fits) AS fits,
    [countIf(why = 1), countIf(why = 2), countIf(why = 3), countIf(why = 4)] AS flaws,
    countIf(why = 0) AS kept,
    countIf(why = 0 AND (toFloat64OrNull(SpanAttributes['mfu.model.flop'])
        > toFloat64OrNull(SpanAttributes['mfu.available.flop']))) AS implausible,
    groupUniqArray(ResourceAttributes['mfu.workload.name']) AS workloads,
    minIf(start_unix_ns, why = 0) AS first,
    maxIf(start_unix_ns, why = 0) AS last,
    (SELECT uniqExactIf(tenant, TraceId, SpanId, why = 0) FROM $spans) AS distinct_spans
FROM $spans
GROUP BY number
ORDER BY number
