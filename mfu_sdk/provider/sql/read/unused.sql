-- Seconds in [since, until), in steps of five minutes, in which dcgm-exporter saw a device without any work.
-- Its default labels name the device (NVIDIA/dcgm-exporter). The provider's own exporters alone: a tenant's is no witness.
SELECT device, countIf(most = 0) * 300 AS unused_s
FROM (
    SELECT
        Attributes['UUID'] AS device, intDiv(toUnixTimestamp64Nano(TimeUnix), 300000000000) AS bucket, max(Value) AS most
    FROM otel.otel_metrics_gauge
    WHERE MetricName = 'DCGM_FI_DEV_GPU_UTIL' AND Attributes['UUID'] != ''
        AND startsWith(ResourceAttributes['mfu.tenant.id'], 'provider:')
        AND TimeUnix >= fromUnixTimestamp64Nano({since:Int64}) AND TimeUnix < fromUnixTimestamp64Nano({until:Int64})
    GROUP BY device, bucket
)
GROUP BY device
ORDER BY device
