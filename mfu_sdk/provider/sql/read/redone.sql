-- Steps in [since, until) of attempts at a run that later ones began before: hours of each device, with the numbers of
-- their first and last step, where these reach the first step of a later attempt. One that began at step 0 says nothing:
-- it may not tell where it resumed.
SELECT
    tenant, workload, family, gpu_type, world_size, host, device, phase, intent, fingerprint, link, link_best,
    mig_profile, parent, allocation_id, run_id, attempt,
    min(counted.step_first) AS first_step, max(counted.step_last) AS last_step,
    sum(counted.step_time_s) AS step_time_s, sum(counted.tokens) AS tokens
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
INNER JOIN (
    SELECT
        tenant, run_id, attempt,
        min(nullIf(begins_at, 0)) OVER (
            PARTITION BY tenant, run_id ORDER BY attempt DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS resumed_at
    FROM (
        SELECT tenant, run_id, attempt, min(step_first) AS begins_at
        FROM otel.mfu_sums_1h
        WHERE is_window AND phase = 'train' AND run_id != '' AND attempt >= 0 AND isNotNull(step_first)
            AND ts >= toDateTime(intDiv({since:Int64}, 3600000000000) * 3600, 'UTC')
        GROUP BY tenant, run_id, attempt
    )
) AS later USING (tenant, run_id, attempt)
WHERE is_window AND phase = 'train' AND isNotNull(resumed_at) AND isNotNull(counted.step_first)
GROUP BY
    tenant, workload, family, gpu_type, world_size, host, device, phase, intent, fingerprint, link, link_best,
    mig_profile, parent, allocation_id, run_id, attempt, toStartOfHour(counted.ts, 'UTC')
HAVING last_step >= any(resumed_at)
ORDER BY tenant, run_id, attempt, device, first_step
