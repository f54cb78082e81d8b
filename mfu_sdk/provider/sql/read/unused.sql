-- Seconds in [since, until), in steps of five minutes, in which the provider's own exporters saw a device without any
-- work. A tenant's exporter is no witness, and is in none of these sums.
SELECT device, countIf(busy = 0) * 300 AS unused_s
FROM (
    SELECT gpu AS device, ts, sum(util) AS busy
    FROM otel.mfu_gpus_5m
    WHERE util_n > 0
        AND ts >= toDateTime(intDiv({since:Int64}, 300000000000) * 300, 'UTC')
        AND ts < toDateTime(intDiv({until:Int64} + 299999999999, 300000000000) * 300, 'UTC')
    GROUP BY device, ts
)
GROUP BY device
ORDER BY device
