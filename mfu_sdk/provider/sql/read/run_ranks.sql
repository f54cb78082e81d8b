-- Sums of one run for each of its ranks, in [since, until); a rank that moved to another device has a row for each.
SELECT
    tenant, any(counted.workload) AS workload, rank, host, device, any(counted.gpu_type) AS gpu_type,
    max(counted.world_size) AS world_size, max(counted.attempt) AS attempt,
    sum(counted.steps) AS steps,
    sum(counted.timed_steps) AS timed_steps,
    sum(counted.unknown_steps) AS unknown_steps,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop,
    sum(counted.expected_flop) AS expected_flop,
    sum(counted.expected_available_flop) AS expected_available_flop,
    sum(counted.step_time_s) AS step_time_s,
    sum(counted.tokens) AS tokens
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE run_id = {run_id:String} AND ({everyone:UInt8} OR tenant = {tenant:String})
GROUP BY tenant, rank, host, device
ORDER BY tenant, rank, host, device
