-- Requests of each workload. They overlap on a device, so no level includes them.
-- Windows that start in [since, until) hold exact totals of the requests that ended in them. A workload without such
-- windows is told from the spans of its requests that started in the range: a tenant may send a sample of them, each
-- of which stands for 1 / mfu.sample.ratio, and sends every failed one.
SELECT
    tenant, workload,
    sum(counted.requests) AS requests,
    sum(counted.failed) AS failed,
    sum(counted.duration_s) AS duration_s,
    sum(counted.tokens) AS tokens,
    max(counted.is_sampled) AS sampled
FROM (
    SELECT
        mfu_tenant_id AS tenant, mfu_workload_name AS workload, sum_is_window AS is_window,
        if(is_window, toFloat64(mfu_request_count), sum_weight) AS requests,
        if(is_window, mfu_request_failed, toInt64(SpanAttributes['error.type'] != '')) AS failed,
        if(is_window, mfu_request_time, Duration / 1e9 * sum_weight) AS duration_s,
        mfu_token_count * sum_weight AS tokens,
        sum_weight != 1 AS is_sampled,
        max(is_window) OVER (PARTITION BY tenant, workload) AS has_windows
    FROM otel.otel_traces
    WHERE (SpanName = 'mfu.inference' OR (SpanName = 'mfu.window' AND isNotNull(mfu_request_count)))
        AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
        AND ({everyone:UInt8} OR mfu_tenant_id = {tenant:String})
) AS counted
WHERE is_window = has_windows
GROUP BY tenant, workload
ORDER BY tenant, workload
