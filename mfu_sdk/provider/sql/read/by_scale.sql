-- The same model on several numbers of ranks: sums of each run, whose tokens a step tell weak from strong scaling.
SELECT
    tenant, workload, family, gpu_type, phase, world_size, run_id,
    sum(counted.steps) AS steps,
    sum(counted.timed_steps) AS timed_steps,
    sum(counted.tokens) AS tokens,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop,
    sum(counted.step_time_s) AS step_time_s
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE ({everyone:UInt8} OR tenant = {tenant:String})
    AND world_size > 0 AND family != ''
GROUP BY tenant, workload, family, gpu_type, phase, world_size, run_id
ORDER BY tenant, workload, family, gpu_type, phase, world_size, run_id
