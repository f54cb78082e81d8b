-- What one run told besides its steps: its ends, its calibrations, its drifts; those that overlap [since, until).
SELECT
    SpanName AS name, ifNull(mfu_dist_rank, -1) AS rank,
    toUnixTimestamp64Nano(Timestamp) AS start_unix_ns, Duration AS duration_ns,
    SpanAttributes['error.type'] AS error, mfu_config_fingerprint AS fingerprint,
    mfu_run_step_count AS steps, mfu_run_overhead AS overhead_s,
    mfu_peak_flop_rate AS peak_flop_per_s, mfu_peak_flop_rate_low AS peak_low, mfu_peak_flop_rate_high AS peak_high,
    mfu_peak_dtype AS peak_dtype, mfu_peak_source AS peak_source,
    mfu_calibration_tier AS tier, mfu_calibration_degraded AS degraded,
    mfu_drift_kind AS kind, mfu_drift_change AS change, mfu_drift_onset_step AS onset_step,
    mfu_drift_found_step AS found_step, mfu_drift_recovered_step AS recovered_step, mfu_drift_cause AS cause,
    JSONExtract(SpanAttributes['mfu.drift.evidence'], 'Array(String)') AS evidence,
    JSONExtract(SpanAttributes['mfu.drift.fingerprint.diff'], 'Array(String)') AS difference
FROM otel.otel_traces
WHERE SpanName IN ('mfu.run', 'mfu.calibration', 'mfu.drift')
    AND mfu_run_id = {run_id:String} AND mfu_tenant_id = {tenant:String}
    AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND toUnixTimestamp64Nano(Timestamp) + Duration >= {since:Int64}
ORDER BY Timestamp, rank
LIMIT 400
