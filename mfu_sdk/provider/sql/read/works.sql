-- What the questions on one range ask, in one pass over the roll-up: `of` says whose rows they are. Each is a grouping of
-- the same cells, which are as fine as any of them needs; a name that a question does not tell apart is empty in its rows.
--
-- by_scale: runs of a known structure and size. under_batching_tenants: work whose server says what would fit (load=),
-- and all inference. by_gpu_type: configurations on each type. low_workloads and change: buckets of bucket_s seconds.
-- trend: of fine_s seconds, which bucket_s is a multiple of.
SELECT
    multiIf(
        grouping(run_id) = 0, 'by_scale', grouping(is_load) = 0, 'under_batching_tenants', grouping(fine_unix_s) = 0, 'trend',
        grouping(start_unix_s) = 1, 'by_gpu_type', grouping(family) = 1, 'low_workloads', 'change') AS of,
    start_unix_s, fine_unix_s, tenant, workload, family, gpu_type, world_size, phase, intent, run_id, is_load,
    sum(cell.steps) AS steps, sum(cell.timed_steps) AS timed_steps, sum(cell.unknown_steps) AS unknown_steps,
    sum(cell.model_flop) AS model_flop, sum(cell.available_flop) AS available_flop,
    sum(cell.expected_flop) AS expected_flop, sum(cell.expected_available_flop) AS expected_available_flop,
    sum(cell.step_time_s) AS step_time_s, sum(cell.tokens) AS tokens,
    sum(cell.batch_s) AS batch_s, sum(cell.batch_time_s) AS batch_time_s,
    sum(cell.batch_feasible_weighted) AS batch_feasible_weighted, sum(cell.batch_feasible_s) AS batch_feasible_s,
    sum(cell.feasible_mfu_weighted) AS feasible_mfu_weighted, sum(cell.feasible_mfu_s) AS feasible_mfu_s,
    sum(cell.queue_weighted) AS queue_weighted, sum(cell.queue_s) AS queue_s,
    sum(cell.kv_free_weighted) AS kv_free_weighted, sum(cell.kv_free_s) AS kv_free_s,
    sum(cell.latency_target_weighted) AS latency_target_weighted, sum(cell.latency_target_s) AS latency_target_s
FROM (
    SELECT
        toUnixTimestamp(toStartOfInterval(counted.ts, toIntervalSecond({bucket_s:UInt32}), 'UTC')) AS start_unix_s,
        toUnixTimestamp(toStartOfInterval(counted.ts, toIntervalSecond({fine_s:UInt32}), 'UTC')) AS fine_unix_s,
        tenant, workload, family, gpu_type, world_size, phase, intent, run_id,
        phase IN ('prefill', 'decode', 'inference') OR counted.batch_feasible_s > 0 AS is_load,
        sum(counted.steps) AS steps, sum(counted.timed_steps) AS timed_steps,
        sum(counted.unknown_steps) AS unknown_steps,
        sum(counted.model_flop) AS model_flop, sum(counted.available_flop) AS available_flop,
        sum(counted.expected_flop) AS expected_flop, sum(counted.expected_available_flop) AS expected_available_flop,
        sum(counted.step_time_s) AS step_time_s, sum(counted.tokens) AS tokens,
        sum(counted.batch_s) AS batch_s, sum(counted.batch_time_s) AS batch_time_s,
        sum(counted.batch_feasible_weighted) AS batch_feasible_weighted,
        sum(counted.batch_feasible_s) AS batch_feasible_s,
        sum(counted.feasible_mfu_weighted) AS feasible_mfu_weighted, sum(counted.feasible_mfu_s) AS feasible_mfu_s,
        sum(counted.queue_weighted) AS queue_weighted, sum(counted.queue_s) AS queue_s,
        sum(counted.kv_free_weighted) AS kv_free_weighted, sum(counted.kv_free_s) AS kv_free_s,
        sum(counted.latency_target_weighted) AS latency_target_weighted,
        sum(counted.latency_target_s) AS latency_target_s
    FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = {fine_s:UInt32}) AS counted
    WHERE ({everyone:UInt8} OR tenant = {tenant:String})
    GROUP BY
        start_unix_s, fine_unix_s, tenant, workload, family, gpu_type, world_size, phase, intent, run_id, is_load
) AS cell
GROUP BY GROUPING SETS (
    (start_unix_s, tenant, workload, gpu_type, world_size),
    (start_unix_s, gpu_type, intent, phase, tenant, workload, family, world_size),
    (fine_unix_s, gpu_type),
    (gpu_type, family, intent, phase, tenant, workload),
    (tenant, workload, family, gpu_type, phase, world_size, run_id),
    (tenant, workload, gpu_type, phase, is_load)
)
HAVING (of != 'by_scale' OR (world_size > 0 AND family != '')) AND (of != 'under_batching_tenants' OR is_load)
