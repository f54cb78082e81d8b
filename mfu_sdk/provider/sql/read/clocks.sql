-- The SM clock of each device in MHz by hour of [since, until), as the provider's own exporters saw it at work: the median
-- over those five minutes in nine tenths of which kernels ran, because a device without any falls to its idle clock.
SELECT
    gpu AS device, toUnixTimestamp(toStartOfHour(ts, 'UTC')) AS hour_unix_s,
    quantileExact(0.5)(mhz) AS mhz
FROM (
    SELECT gpu, ts, sum(clock) / sum(clock_n) AS mhz
    FROM otel.mfu_gpus_5m
    WHERE slice = ''
        AND ts >= toDateTime(intDiv({since:Int64}, 300000000000) * 300, 'UTC')
        AND ts < toDateTime(intDiv({until:Int64} + 299999999999, 300000000000) * 300, 'UTC')
    GROUP BY gpu, ts
    HAVING sum(clock_n) > 0 AND sum(util_n) > 0 AND sum(util) >= 0.9 * sum(util_n)
)
GROUP BY device, hour_unix_s
ORDER BY device, hour_unix_s
