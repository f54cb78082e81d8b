-- What was counted in whole hours of [since, until) on GPUs that the provider's own exporter watched all along, and that
-- one configuration of one workload had to itself with every step known: its FLOPs and seconds beside tensor × clock
-- over all of those hours, by device; and what crossed its PCIe bus in those of them in which that was told all along,
-- in bytes (rates × seconds), with the seconds. Slices of MIG are left out: an exporter does not tell their UUIDs.
SELECT
    unit.1 AS tenant, unit.2 AS workload, unit.3 AS family, unit.4 AS gpu_type, unit.5 AS world_size, unit.6 AS intent,
    unit.7 AS fingerprint, unit.8 AS phase, gpu AS device,
    sum(hardware_flop) AS hardware_flop, sum(available_flop) AS available_flop, sum(step_time_s) AS step_time_s,
    count() * 3600 AS wall_s, sum(mhz_s) AS mhz_s,
    sum(bus_s) AS bus_s, sum(bus_tx_bytes) AS bus_tx_bytes, sum(bus_rx_bytes) AS bus_rx_bytes
FROM (
    SELECT
        device AS gpu, toStartOfHour(ts, 'UTC') AS hour,
        any((tenant, workload, family, gpu_type, world_size, intent, fingerprint, phase)) AS unit,
        sum(c.hardware_flop) AS hardware_flop, sum(c.available_flop) AS available_flop,
        sum(c.step_time_s) AS step_time_s
    FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS c
    WHERE startsWith(device, 'GPU-')
    GROUP BY gpu, hour
    HAVING uniqExact((c.tenant, c.workload, c.family, c.gpu_type, c.world_size, c.intent, c.fingerprint, c.phase)) = 1
        AND ifNull(sum(c.unknown_steps), 0) = 0 AND hardware_flop > 0 AND available_flop > 0
) AS counted
INNER JOIN (
    SELECT gpu, ts AS hour, both_w AS mhz_s
    FROM otel.mfu_gpus_1h FINAL
    WHERE slice = '' AND both_s = 3600
        AND ts >= toDateTime(intDiv({since:Int64}, 1000000000), 'UTC')
        AND ts < toDateTime(intDiv({until:Int64}, 1000000000), 'UTC')
    UNION ALL
    SELECT gpu, toStartOfHour(ts, 'UTC') AS hour, sum(300 * tensor / tensor_n * clock / clock_n) AS mhz_s
    FROM otel.mfu_gpus_5m FINAL
    WHERE slice = '' AND tensor_n > 0 AND clock_n > 0
        AND ts >= toDateTime(intDiv({since:Int64}, 1000000000), 'UTC')
        AND ts < toDateTime(intDiv({until:Int64}, 1000000000), 'UTC')
        AND toDate(ts) NOT IN (SELECT DISTINCT toDate(ts) FROM otel.mfu_gpus_1h)
    GROUP BY gpu, hour
    HAVING count() = 12
) AS watched USING (gpu, hour)
LEFT JOIN (
    SELECT
        gpu, toStartOfHour(ts, 'UTC') AS hour, 3600 AS bus_s,
        sum(300 * pcie_tx / pcie_tx_n) AS bus_tx_bytes, sum(300 * pcie_rx / pcie_rx_n) AS bus_rx_bytes
    FROM otel.mfu_gpus_5m FINAL
    WHERE slice = '' AND pcie_tx_n > 0 AND pcie_rx_n > 0
        AND ts >= toDateTime(intDiv({since:Int64}, 1000000000), 'UTC')
        AND ts < toDateTime(intDiv({until:Int64}, 1000000000), 'UTC')
    GROUP BY gpu, hour
    HAVING count() = 12
) AS bus USING (gpu, hour)
GROUP BY unit, device
ORDER BY unit, device
SETTINGS do_not_merge_across_partitions_select_final = 1
