-- The steps of the lowest rank of one run, as its newest windows in [since, until) hold them; newest first.
SELECT
    mfu_phase AS phase, ifNull(mfu_dist_rank, -1) AS rank, mfu_window_step_first AS first_step,
    JSONExtract(SpanAttributes['mfu.window.step.utilizations'], 'Array(Int64)') AS utilizations
FROM otel.otel_traces
WHERE SpanName = 'mfu.window' AND mfu_run_id = {run_id:String} AND mfu_tenant_id = {tenant:String}
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND ifNull(mfu_dist_rank, -1) = (
        SELECT min(ifNull(mfu_dist_rank, -1))
        FROM otel.otel_traces
        WHERE SpanName = 'mfu.window' AND mfu_run_id = {run_id:String} AND mfu_tenant_id = {tenant:String}
            AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})
            AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    )
ORDER BY Timestamp DESC
LIMIT 64
