-- Steps in [since, until) of attempts at a run that later ones began before: rows of the hours' sums, each with the
-- numbers of its first and last step, for those that reach the first step of a later attempt. One that began at step 0
-- says nothing: it may not tell where it resumed.
SELECT
    tenant, workload, family, gpu_type, world_size, host, device, phase, intent, fingerprint, link, link_best,
    mig_profile, parent, allocation_id, run_id, attempt,
    counted.step_first AS first_step, counted.step_last AS last_step,
    counted.step_time_s AS step_time_s, counted.tokens AS tokens
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
INNER JOIN (
    SELECT
        tenant, run_id, attempt,
        min(nullIf(first_step, 0)) OVER (
            PARTITION BY tenant, run_id ORDER BY attempt DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS resumed_at
    FROM (
        SELECT tenant, run_id, attempt, min(step_first) AS first_step
        FROM otel.mfu_sums_1h
        WHERE is_window AND phase = 'train' AND run_id != '' AND attempt >= 0 AND isNotNull(step_first)
            AND ts >= toDateTime(intDiv({since:Int64}, 3600000000000) * 3600, 'UTC')
        GROUP BY tenant, run_id, attempt
    )
) AS later USING (tenant, run_id, attempt)
WHERE is_window AND phase = 'train' AND isNotNull(resumed_at) AND last_step >= resumed_at
ORDER BY tenant, run_id, attempt, device, first_step
