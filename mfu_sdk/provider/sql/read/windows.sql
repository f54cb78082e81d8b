-- Windows that start in [since, until), of the first rank of each run whose own process tells of no drift.
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload, mfu_workload_family AS family,
    ResourceAttributes['hw.name'] AS gpu_type, ifNull(mfu_dist_world_size, -1) AS world_size,
    mfu_config_intent AS intent, mfu_config_fingerprint AS fingerprint, mfu_phase AS phase,
    mfu_run_id AS run_id, ifNull(mfu_dist_rank, -1) AS rank,
    toUnixTimestamp64Nano(Timestamp) AS start_unix_ns,
    mfu_window_step_first AS first_step, SpanAttributes['mfu.window.step.durations'] AS durations_us,
    SpanAttributes['mfu.window.step.utilizations'] AS utilizations_bp,
    mfu_window_step_timed AS timed, mfu_window_step_unknown AS unknown, mfu_window_step_count AS steps,
    mfu_model_flop AS model_flop, mfu_hardware_flop AS hardware_flop, mfu_peak_flop_rate AS peak_flops_per_s,
    mfu_peak_dtype AS peak_dtype, mfu_convention AS convention,
    mfu_expected AS expected_mfu, mfu_token_count AS tokens, mfu_step_data_time AS data_s, mfu_step_comm_time AS comm_s,
    mfu_step_skew_time AS skew_s, mfu_step_host_time AS host_s, mfu_batch_running AS batch, mfu_clock_ratio AS clock,
    SpanAttributes['mfu.throttle.reasons'] AS reasons
FROM otel.otel_traces
WHERE SpanName = 'mfu.window' AND run_id != ''
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND (tenant, run_id) NOT IN (
        SELECT mfu_tenant_id, mfu_run_id FROM otel.otel_traces
        WHERE SpanName = 'mfu.drift' AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    )
    AND (tenant, run_id, rank) IN (
        SELECT mfu_tenant_id, mfu_run_id, min(ifNull(mfu_dist_rank, -1)) FROM otel.otel_traces
        WHERE SpanName = 'mfu.window'
            AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})
            AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
        GROUP BY mfu_tenant_id, mfu_run_id
    )
ORDER BY tenant, run_id, rank, start_unix_ns, first_step
