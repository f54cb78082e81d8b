-- The first windows of the latest runs of one configuration in [since, until): of each run's first rank, and of each
-- phase as many as so many steps take.
SELECT * EXCEPT (earlier_steps) FROM (
SELECT
    mfu_tenant_id AS tenant, mfu_run_id AS run_id, ifNull(mfu_dist_rank, -1) AS rank, mfu_phase AS phase,
    mfu_config_fingerprint AS fingerprint, toUnixTimestamp64Nano(Timestamp) AS start_unix_ns,
    mfu_window_step_first AS first_step, SpanAttributes['mfu.window.step.durations'] AS durations_us,
    SpanAttributes['mfu.window.step.utilizations'] AS utilizations_bp,
    mfu_window_step_timed AS timed, mfu_window_step_unknown AS unknown, mfu_window_step_count AS steps,
    mfu_model_flop AS model_flop, mfu_hardware_flop AS hardware_flop, mfu_peak_flop_rate AS peak_flops_per_s,
    mfu_peak_dtype AS peak_dtype, mfu_convention AS convention,
    mfu_expected AS expected_mfu, mfu_token_count AS tokens, mfu_step_data_time AS data_s, mfu_step_comm_time AS comm_s,
    mfu_step_skew_time AS skew_s, mfu_step_host_time AS host_s, mfu_batch_running AS batch, mfu_clock_ratio AS clock,
    SpanAttributes['mfu.throttle.reasons'] AS reasons,
    sum(ifNull(steps, 0)) OVER (
        PARTITION BY tenant, run_id, rank, phase ORDER BY start_unix_ns, first_step
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) - ifNull(steps, 0) AS earlier_steps
FROM otel.otel_traces
WHERE SpanName = 'mfu.window' AND fingerprint = {fingerprint:String}
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND (tenant, run_id, rank) IN (
        SELECT mfu_tenant_id, mfu_run_id, min(ifNull(mfu_dist_rank, -1)) FROM otel.otel_traces
        WHERE SpanName = 'mfu.window' AND mfu_config_fingerprint = {fingerprint:String} AND mfu_run_id != ''
            AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})
            AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
            AND ({everyone:UInt8} OR mfu_tenant_id = {tenant:String})
        GROUP BY mfu_tenant_id, mfu_run_id
        ORDER BY max(Timestamp) DESC
        LIMIT {runs:UInt32}
    )
)
WHERE earlier_steps < {steps:UInt32}
ORDER BY tenant, run_id, start_unix_ns, first_step
