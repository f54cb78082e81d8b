-- What the provider's own dcgm-exporters saw of each device at work in [since, until): tensor pipes busy × the SM clock
-- in MHz, the mean over scrapes that have both and found the pipes busy. Idle time is no part of it, so that it never
-- lies below what steps show.
SELECT device, avgIf(active * mhz, active > 0 AND mhz > 0) AS busy_mhz
FROM (
    SELECT
        Attributes['UUID'] AS device, TimeUnix,
        maxIf(Value, MetricName = 'DCGM_FI_PROF_PIPE_TENSOR_ACTIVE') AS active,
        maxIf(Value, MetricName = 'DCGM_FI_DEV_SM_CLOCK') AS mhz
    FROM otel.otel_metrics_gauge
    WHERE MetricName IN ('DCGM_FI_PROF_PIPE_TENSOR_ACTIVE', 'DCGM_FI_DEV_SM_CLOCK') AND Attributes['UUID'] != ''
        AND startsWith(ResourceAttributes['mfu.tenant.id'], 'provider:')
        AND TimeUnix >= fromUnixTimestamp64Nano({since:Int64}) AND TimeUnix < fromUnixTimestamp64Nano({until:Int64})
    GROUP BY device, TimeUnix
)
GROUP BY device
HAVING countIf(active > 0 AND mhz > 0) > 0
ORDER BY device
