-- The days that are over, none older than `days`, of which the five minutes hold more samples than the hours.
WITH
    toStartOfDay(now('UTC')) AS until,
    toDateTime(greatest(0, toInt64(toUnixTimestamp(until)) - {days:Int64} * 86400), 'UTC') AS since
SELECT day FROM (
    SELECT
        toDate(f.ts) AS day,
        sum(tensor_n + engine_n + util_n + clock_n + power_n + xid_n + double_n + single_n) AS told, 0 AS made
    FROM otel.mfu_gpus_5m AS f
    WHERE f.ts >= since AND f.ts < until
    GROUP BY day
    UNION ALL
    SELECT toDate(h.ts) AS day, 0 AS told, sum(samples) AS made
    FROM otel.mfu_gpus_1h AS h FINAL
    WHERE h.ts >= since AND h.ts < until
    GROUP BY day
)
GROUP BY day
HAVING sum(told) > sum(made)
ORDER BY day
