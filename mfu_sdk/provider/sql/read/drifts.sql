-- Excursions that overlap [since, until), the newest telling of each.
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload, mfu_workload_family AS family,
    ResourceAttributes['hw.name'] AS gpu_type, ifNull(mfu_dist_world_size, -1) AS world_size,
    mfu_config_intent AS intent, mfu_config_fingerprint AS fingerprint, mfu_phase AS phase,
    mfu_run_id AS run_id, ifNull(mfu_run_attempt, -1) AS attempt, ifNull(mfu_dist_rank, -1) AS rank,
    mfu_drift_kind AS kind, mfu_drift_cause AS cause, mfu_drift_change AS change, mfu_drift_onset_step AS onset_step,
    toUnixTimestamp64Nano(Timestamp) AS onset_unix_ns,
    -- One that has not recovered goes on.
    if(isNull(mfu_drift_recovered_step), {until:Int64}, toUnixTimestamp64Nano(Timestamp) + Duration) AS end_unix_ns,
    JSONExtract(SpanAttributes['mfu.drift.fingerprint.diff'], 'Array(String)') AS diff
FROM otel.otel_traces
WHERE SpanName = 'mfu.drift'
    AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64} - 2592000000000000)
    AND end_unix_ns >= {since:Int64}
ORDER BY tenant, run_id, attempt, rank, onset_step, Duration DESC
LIMIT 1 BY tenant, run_id, attempt, rank, phase, kind, onset_step
