-- Which workloads are low against their expectation, and how often: sums of each in buckets of bucket_s seconds.
SELECT
    toUnixTimestamp(toStartOfInterval(counted.ts, toIntervalSecond({bucket_s:UInt32}), 'UTC')) AS start_unix_s,
    tenant, workload, gpu_type, world_size,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop,
    sum(counted.expected_flop) AS expected_flop,
    sum(counted.expected_available_flop) AS expected_available_flop,
    sum(counted.step_time_s) AS step_time_s
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = {bucket_s:UInt32}) AS counted
WHERE ({everyone:UInt8} OR tenant = {tenant:String})
GROUP BY start_unix_s, tenant, workload, gpu_type, world_size
ORDER BY start_unix_s, tenant, workload, gpu_type, world_size
