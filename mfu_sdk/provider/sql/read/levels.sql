-- Sums for each device of each workload in [since, until); every level is a sum of these rows.
SELECT
    tenant, workload, family, gpu_type, world_size, host, device,
    groupUniqArray(run_id) AS run_ids,
    sum(counted.steps) AS steps,
    sum(counted.timed_steps) AS timed_steps,
    sum(counted.unknown_steps) AS unknown_steps,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop,
    sum(counted.expected_flop) AS expected_flop,
    sum(counted.expected_available_flop) AS expected_available_flop,
    sum(counted.step_time_s) AS step_time_s,
    sum(counted.tokens) AS tokens,
    sum(counted.batch_s) AS batch_s,
    sum(counted.batch_time_s) AS batch_time_s
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}) AS counted
WHERE {everyone:UInt8} OR tenant = {tenant:String}
GROUP BY tenant, workload, family, gpu_type, world_size, host, device
ORDER BY tenant, workload, family, gpu_type, world_size, host, device
