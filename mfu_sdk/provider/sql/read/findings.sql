-- What the last judgement of each day in [first, last] found.
SELECT
    day, tenant, workload, run_id, gpu_type, world_size, phase, cause, loss_share, confidence, evidence,
    remedy
FROM otel.mfu_findings AS found FINAL
WHERE found.day >= toDate({first:String}) AND found.day <= toDate({last:String})
    AND (found.day, judged_unix_ns) IN (SELECT day, max(judged_unix_ns) FROM otel.mfu_judged_days GROUP BY day)
    AND ({everyone:UInt8} OR tenant = {tenant:String})
ORDER BY found.day DESC, loss_share DESC, tenant, series
