-- What windows in [since, until) tell beside the sums: one row for each rank of each configuration of a workload.
-- Seconds are those of steps. A median over windows is not moved by what passes.
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload, mfu_workload_family AS family,
    ResourceAttributes['hw.name'] AS gpu_type, ifNull(mfu_dist_world_size, -1) AS world_size,
    mfu_config_intent AS intent, mfu_config_fingerprint AS fingerprint, mfu_phase AS phase,
    ifNull(mfu_dist_rank, -1) AS rank,
    if(ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
        ResourceAttributes['host.name']) AS host,
    if(ResourceAttributes['hw.id'] != '', ResourceAttributes['hw.id'], concat(host, '/', toString(rank))) AS device,
    any(mfu_dist_dp) AS dp,
    min(toUnixTimestamp64Nano(Timestamp)) AS first_unix_ns,
    max(toUnixTimestamp64Nano(Timestamp) + Duration) AS last_unix_ns,
    sum(seconds) AS time_s,
    sumIf(seconds, told) AS throttle_known_s,
    sumIf(seconds, match(reasons, '(?i)thermal|hardware slowdown|power brake')) AS heat_s,
    sumIf(seconds, match(reasons, '(?i)software power cap')) AS cap_s,
    sumIf(mfu_step_skew_time, mfu_step_skew_time >= 0) AS skew_s,
    sumIf(seconds, mfu_step_skew_time >= 0) AS skew_known_s,
    sumIf(mfu_step_comm_time, mfu_step_comm_time >= 0) AS comm_s,
    sumIf(seconds, mfu_step_comm_time >= 0) AS comm_known_s,
    quantileExactWeightedIf(0.5)(
        assumeNotNull(mfu_comm_bus_rate), toUInt64(ceil(seconds * 1000)), mfu_comm_bus_rate > 0) AS bus_rate,
    quantileExactWeightedIf(0.5)(
        assumeNotNull(mfu_comm_bus_rate_peak), toUInt64(ceil(seconds * 1000)), mfu_comm_bus_rate_peak > 0) AS bus_peak,
    sumIf(mfu_comm_bytes, mfu_comm_bytes > 0) AS comm_bytes,
    sumIf(mfu_window_step_timed, mfu_comm_bytes > 0) AS comm_steps,
    sumIf(sum_hardware_flop, mfu_witness_utilization >= 0) AS witnessed_hardware_flop,
    sumIf(sum_available_flop, mfu_witness_utilization >= 0 AND isNotNull(sum_hardware_flop)) AS witnessed_available_flop,
    sumIf(mfu_dtype_utilization * seconds, mfu_dtype_utilization > 0 AND mfu_utilization > 0) AS by_dtype_s,
    sumIf(mfu_utilization * seconds, mfu_dtype_utilization > 0 AND mfu_utilization > 0) AS by_peak_s,
    sumIf(mfu_clock_ratio * seconds, mfu_clock_ratio > 0) AS clock_s,
    sumIf(seconds, mfu_clock_ratio > 0) AS clock_known_s,
    sum(sum_model_flop) AS model_flop,
    sumIf(mfu_attention_flop_exact, sum_model_flop > 0) AS attention_flop,
    sumIf(sum_model_flop, mfu_attention_flop_exact >= 0) AS attended_flop,
    sum(mfu_window_step_timed - mfu_window_step_unknown) AS known_steps,
    sum(mfu_token_count) AS tokens,
    sum(mfu_window_step_count) AS steps,
    argMax(mfu_peak_dtype, seconds) AS peak_dtype,
    argMax(mfu_peak_source, seconds) AS peak_source,
    groupUniqArrayIf(8)(ResourceAttributes['hw.driver_version'], ResourceAttributes['hw.driver_version'] != '') AS driver,
    groupUniqArrayIf(8)(
        concat(ResourceAttributes['container.image.name'], ' ', ResourceAttributes['container.image.tags']),
        ResourceAttributes['container.image.name'] != '') AS image,
    groupUniqArrayArray(8)(mapValues(mapFilter(
        (key, value) -> match(key, '(?i)nodepool|nodegroup|agentpool') AND value != '', ResourceAttributes))) AS pool,
    groupUniqArrayIf(8)(
        ResourceAttributes['cloud.availability_zone'], ResourceAttributes['cloud.availability_zone'] != '') AS zone
FROM (
    SELECT
        *, mfu_tenant_id, mfu_workload_name, mfu_workload_family, mfu_dist_world_size, mfu_dist_rank, mfu_dist_dp,
        mfu_config_intent, mfu_config_fingerprint, mfu_phase, mfu_step_skew_time, mfu_step_comm_time, mfu_comm_bus_rate,
        mfu_comm_bus_rate_peak, mfu_comm_bytes, mfu_window_step_timed, mfu_window_step_unknown, mfu_window_step_count,
        mfu_witness_utilization, mfu_token_count, mfu_peak_dtype, mfu_clock_ratio,
        mfu_dtype_utilization, mfu_utilization, mfu_peak_source, mfu_attention_flop_exact,
        sum_hardware_flop, sum_available_flop, sum_model_flop,
        ifNull(sum_step_time_s, 0) AS seconds, SpanAttributes['mfu.throttle.reasons'] AS reasons,
        reasons != '' OR isNotNull(mfu_clock_ratio) AS told
    FROM otel.otel_traces
    WHERE SpanName = 'mfu.window'
        AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
)
GROUP BY tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, rank, host, device
ORDER BY tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, rank, host, device
