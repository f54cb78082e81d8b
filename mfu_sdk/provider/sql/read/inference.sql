-- Requests of each workload that started in [since, until). They overlap on a device, so no level includes them.
-- A tenant may send a sample of its requests, each of which stands for 1 / mfu.sample.ratio; every failed one is sent.
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload,
    sum(sum_weight) AS requests,
    count() AS spans,
    sum(Duration * sum_weight) / 1e9 AS duration_s,
    sum(mfu_token_count * sum_weight) AS tokens,
    countIf(SpanAttributes['error.type'] != '') AS failed
FROM otel.otel_traces
WHERE SpanName = 'mfu.inference'
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND ({everyone:UInt8} OR mfu_tenant_id = {tenant:String})
GROUP BY tenant, workload
ORDER BY tenant, workload
