-- Sums for each device of each workload in [since, until); every level is a sum of these rows.
SELECT
    tenant, workload, family, gpu_type, world_size, host, device, phase, intent, fingerprint, link, link_best,
    mig_profile, parent, allocation_id,
    groupUniqArray(run_id) AS run_ids,
    sum(counted.steps) AS steps, sum(counted.timed_steps) AS timed_steps, sum(counted.unknown_steps) AS unknown_steps,
    sum(counted.model_flop) AS model_flop, sum(counted.available_flop) AS available_flop,
    sum(counted.expected_flop) AS expected_flop, sum(counted.expected_available_flop) AS expected_available_flop,
    sum(counted.step_time_s) AS step_time_s, sum(counted.tokens) AS tokens, sum(counted.batch_s) AS batch_s,
    sum(counted.batch_time_s) AS batch_time_s, sum(counted.hardware_flop) AS hardware_flop,
    sum(counted.data_known_s) AS data_known_s, sum(counted.data_s) AS data_s,
    sum(counted.comm_known_s) AS comm_known_s, sum(counted.comm_s) AS comm_s,
    sum(counted.skew_known_s) AS skew_known_s, sum(counted.skew_s) AS skew_s,
    sum(counted.host_known_s) AS host_known_s, sum(counted.host_s) AS host_s,
    sum(counted.bus_rate_weighted) AS bus_rate_weighted, sum(counted.bus_rate_s) AS bus_rate_s,
    sum(counted.bus_peak_weighted) AS bus_peak_weighted, sum(counted.bus_peak_s) AS bus_peak_s,
    sum(counted.ideal_ratio_weighted) AS ideal_ratio_weighted, sum(counted.ideal_ratio_s) AS ideal_ratio_s,
    sum(counted.clock_weighted) AS clock_weighted, sum(counted.clock_s) AS clock_s,
    sum(counted.witness_weighted) AS witness_weighted, sum(counted.witness_s) AS witness_s,
    sum(counted.batch_feasible_weighted) AS batch_feasible_weighted,
    sum(counted.batch_feasible_s) AS batch_feasible_s, sum(counted.queue_weighted) AS queue_weighted,
    sum(counted.queue_s) AS queue_s, sum(counted.kv_free_weighted) AS kv_free_weighted,
    sum(counted.kv_free_s) AS kv_free_s, sum(counted.intensity_weighted) AS intensity_weighted,
    sum(counted.intensity_s) AS intensity_s, sum(counted.memory_rate_weighted) AS memory_rate_weighted,
    sum(counted.memory_rate_s) AS memory_rate_s, sum(counted.feasible_mfu_weighted) AS feasible_mfu_weighted,
    sum(counted.feasible_mfu_s) AS feasible_mfu_s, sum(counted.latency_target_weighted) AS latency_target_weighted,
    sum(counted.latency_target_s) AS latency_target_s,
    sum(counted.expected_low_flop) AS expected_low_flop, sum(counted.expected_high_flop) AS expected_high_flop,
    sum(counted.expected_interval_flop) AS expected_interval_flop
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE {everyone:UInt8} OR tenant = {tenant:String}
GROUP BY
    tenant, workload, family, gpu_type, world_size, host, device, phase, intent, fingerprint, link, link_best,
    mig_profile, parent, allocation_id
ORDER BY
    tenant, workload, family, gpu_type, world_size, host, device, phase, intent, fingerprint, link, link_best,
    mig_profile, parent, allocation_id
