-- Sums of each run in [since, until), by all that runs have to share to be held against one another.
SELECT
    tenant, workload, family, gpu_type, world_size, phase, fingerprint, run_id,
    toUnixTimestamp(min(counted.ts)) AS start_unix_s,
    sum(counted.steps) AS steps, sum(counted.timed_steps) AS timed_steps, sum(counted.unknown_steps) AS unknown_steps,
    sum(counted.model_flop) AS model_flop, sum(counted.available_flop) AS available_flop,
    sum(counted.step_time_s) AS step_time_s, sum(counted.tokens) AS tokens,
    sum(counted.batch_s) AS batch_s, sum(counted.batch_time_s) AS batch_time_s
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE fingerprint != '' AND run_id != ''
GROUP BY tenant, workload, family, gpu_type, world_size, phase, fingerprint, run_id
ORDER BY tenant, workload, family, gpu_type, world_size, phase, fingerprint, start_unix_s, run_id
