-- Sums by hour of each configuration of a workload in [since, until), for what may change within a day: waits, links and
-- clocks. `slowest_clock` is that of the device with the lowest; 0 where one of them tells none.
SELECT
    tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, hour_unix_s,
    sum(device_hours.time_s) AS step_time_s,
    sum(device_hours.model_flop) AS model_flop, sum(device_hours.available_flop) AS available_flop,
    sum(device_hours.data_s) AS data_s, sum(device_hours.data_known_s) AS data_known_s,
    sum(device_hours.comm_s) AS comm_s, sum(device_hours.comm_known_s) AS comm_known_s,
    sum(device_hours.skew_s) AS skew_s, sum(device_hours.skew_known_s) AS skew_known_s,
    sum(device_hours.bus_rate_weighted) AS bus_rate_weighted, sum(device_hours.bus_rate_s) AS bus_rate_s,
    sum(device_hours.clock_weighted) AS clock_weighted, sum(device_hours.clock_s) AS clock_s,
    min(if(device_hours.clock_s > 0, device_hours.clock_weighted / device_hours.clock_s, 0)) AS slowest_clock
FROM (
    SELECT
        tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, device,
        toUnixTimestamp(toStartOfHour(ts, 'UTC')) AS hour_unix_s,
        sum(counted.step_time_s) AS time_s,
        sum(counted.model_flop) AS model_flop, sum(counted.available_flop) AS available_flop,
        sum(counted.data_s) AS data_s, sum(counted.data_known_s) AS data_known_s,
        sum(counted.comm_s) AS comm_s, sum(counted.comm_known_s) AS comm_known_s,
        sum(counted.skew_s) AS skew_s, sum(counted.skew_known_s) AS skew_known_s,
        sum(counted.bus_rate_weighted) AS bus_rate_weighted, sum(counted.bus_rate_s) AS bus_rate_s,
        sum(counted.clock_weighted) AS clock_weighted, sum(counted.clock_s) AS clock_s
    FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
    GROUP BY tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, device, hour_unix_s
) AS device_hours
WHERE time_s > 0
GROUP BY tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, hour_unix_s
ORDER BY tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase, hour_unix_s
