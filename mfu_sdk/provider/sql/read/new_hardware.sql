-- The same configurations (intents) on older and newer GPU types, and when each type was first seen since `since`.
SELECT
    toUnixTimestamp(min(counted.ts)) AS first_unix_s,
    gpu_type, intent, phase, tenant, workload,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop,
    sum(counted.timed_steps) AS timed_steps,
    sum(counted.unknown_steps) AS unknown_steps,
    sum(counted.step_time_s) AS step_time_s,
    sum(counted.tokens) AS tokens
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE ({everyone:UInt8} OR tenant = {tenant:String})
GROUP BY gpu_type, intent, phase, tenant, workload
ORDER BY gpu_type, intent, phase, tenant, workload
