-- When each GPU began to show an Xid, or another count of ECC errors, in [since - a day, until): from another value or
-- after ten minutes without it. `previous` is what it showed before, 0 where that is nothing; `known_ns` is when the
-- metric was first told, so that a first value is told from a change; `last_ns` when the value was last shown.
SELECT
    host, gpu, metric, value, first_ns, previous, known_ns, shown_ns AS last_ns
FROM (
    SELECT
        host, gpu, metric, value, first_ns,
        lagInFrame(value, 1, 0) OVER w AS previous, lagInFrame(last_ns, 1, 0) OVER w AS previous_ns,
        max(last_ns) OVER (PARTITION BY gpu, metric, value) AS shown_ns
    FROM (
        SELECT
            any(e.host) AS host, gpu, metric, value, ts,
            toUnixTimestamp64Nano(min(e.first)) AS first_ns, toUnixTimestamp64Nano(max(e.last)) AS last_ns
        FROM otel.mfu_gpu_errors_5m AS e
        WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 86700, 'UTC')
            AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
        GROUP BY gpu, metric, value, ts
    )
    WINDOW w AS (PARTITION BY gpu, metric ORDER BY first_ns, value ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
) AS shown
LEFT JOIN (
    SELECT
        gpu, arrayJoin(['xid', 'double', 'single']) AS metric,
        toInt64(toUnixTimestamp(minIf(g.ts, multiIf(metric = 'xid', g.xid_n, metric = 'double', g.double_n, g.single_n) > 0)))
            * 1000000000 AS known_ns
    FROM otel.mfu_gpus_5m AS g
    WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 86700, 'UTC')
        AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
        AND gpu IN (SELECT gpu FROM otel.mfu_gpu_errors_5m)
    GROUP BY gpu, metric
) AS known USING (gpu, metric)
WHERE (previous != value OR first_ns - previous_ns > 600000000000) AND first_ns < {until:Int64}
ORDER BY gpu, metric, first_ns, value
