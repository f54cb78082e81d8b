-- Which tenants batch less than would fit: sums of work whose server says what would fit (load=), and of all decoding.
SELECT
    tenant, workload, gpu_type, phase,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop,
    sum(counted.expected_flop) AS expected_flop,
    sum(counted.expected_available_flop) AS expected_available_flop,
    sum(counted.step_time_s) AS step_time_s,
    sum(counted.tokens) AS tokens,
    sum(counted.batch_s) AS batch_s,
    sum(counted.batch_time_s) AS batch_time_s,
    sum(counted.batch_feasible_weighted) AS batch_feasible_weighted,
    sum(counted.batch_feasible_s) AS batch_feasible_s,
    sum(counted.feasible_mfu_weighted) AS feasible_mfu_weighted,
    sum(counted.feasible_mfu_s) AS feasible_mfu_s,
    sum(counted.queue_weighted) AS queue_weighted,
    sum(counted.queue_s) AS queue_s,
    sum(counted.kv_free_weighted) AS kv_free_weighted,
    sum(counted.kv_free_s) AS kv_free_s,
    sum(counted.latency_target_weighted) AS latency_target_weighted,
    sum(counted.latency_target_s) AS latency_target_s
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE ({everyone:UInt8} OR tenant = {tenant:String})
    AND (phase IN ('prefill', 'decode', 'inference') OR counted.batch_feasible_s > 0)
GROUP BY tenant, workload, gpu_type, phase
ORDER BY tenant, workload, gpu_type, phase
