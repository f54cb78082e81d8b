-- Sums of each run of one configuration in [since, until), from its windows.
SELECT
    ResourceAttributes['hw.name'] AS gpu_type,
    ifNull(mfu_dist_world_size, -1) AS world_size,
    mfu_tenant_id AS tenant, mfu_run_id AS run_id,
    sum(sum_timed_steps) AS timed_steps,
    sum(sum_model_flop) AS model_flop,
    sum(sum_available_flop) AS available_flop,
    sum(sum_step_time_s) AS step_time_s
FROM otel.otel_traces
WHERE SpanName = 'mfu.window' AND mfu_config_fingerprint = {fingerprint:String}
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND ({everyone:UInt8} OR mfu_tenant_id = {tenant:String})
GROUP BY gpu_type, world_size, tenant, run_id
ORDER BY gpu_type, world_size, tenant, run_id
