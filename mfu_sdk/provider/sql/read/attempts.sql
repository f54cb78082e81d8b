-- The attempts at runs that had several from `since` on: the numbers of the first and the last step that each trained.
-- Those after `until` count too: what they did again was lost all the same.
SELECT tenant, run_id, attempt, min(step_first) AS first_step, max(step_last) AS last_step
FROM otel.mfu_sums_1h
WHERE is_window AND phase = 'train' AND run_id != '' AND attempt >= 0 AND isNotNull(step_first)
    AND ts >= toDateTime(intDiv({since:Int64}, 3600000000000) * 3600, 'UTC')
    AND (tenant, run_id) IN (
        SELECT tenant, run_id
        FROM otel.mfu_sums_1h
        WHERE is_window AND phase = 'train' AND run_id != '' AND attempt >= 0
            AND ts >= toDateTime(intDiv({since:Int64}, 3600000000000) * 3600, 'UTC')
        GROUP BY tenant, run_id
        HAVING min(attempt) != max(attempt)
    )
GROUP BY tenant, run_id, attempt
ORDER BY tenant, run_id, attempt
