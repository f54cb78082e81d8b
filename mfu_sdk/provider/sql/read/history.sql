-- Sums of each run in [since, until), to five minutes, by all that runs have to share to be held against one another.
SELECT
    tenant, workload, family, gpu_type, world_size, phase, fingerprint, run_id,
    toUnixTimestamp(min(ts)) AS start_unix_s,
    sum(of.steps) AS steps, sum(of.timed_steps) AS timed_steps, sum(of.unknown_steps) AS unknown_steps,
    sum(of.model_flop) AS model_flop, sum(of.available_flop) AS available_flop,
    sum(of.step_time_s) AS step_time_s, sum(of.tokens) AS tokens,
    sum(of.batch_s) AS batch_s, sum(of.batch_time_s) AS batch_time_s
FROM otel.mfu_sums_5m AS of
WHERE is_window AND fingerprint != '' AND run_id != ''
    AND ts >= toDateTime(intDiv({since:Int64}, 300000000000) * 300, 'UTC')
    AND ts < toDateTime(intDiv({until:Int64} + 299999999999, 300000000000) * 300, 'UTC')
GROUP BY tenant, workload, family, gpu_type, world_size, phase, fingerprint, run_id
ORDER BY tenant, workload, family, gpu_type, world_size, phase, fingerprint, start_unix_s, run_id
