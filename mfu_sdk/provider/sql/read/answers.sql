-- How long requests of each workload that started in [since, until) took, and each token of their answers.
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload,
    sum(sum_weight * mfu_inference_time_per_output_token)
        / sumIf(sum_weight, mfu_inference_time_per_output_token > 0) AS token_s,
    sum(sum_weight * Duration) / sum(sum_weight) / 1e9 AS request_s
FROM otel.otel_traces
WHERE SpanName = 'mfu.inference' AND SpanAttributes['error.type'] = ''
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
GROUP BY tenant, workload
HAVING sum(sum_weight) > 0
