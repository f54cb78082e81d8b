-- The days of which spans, five minutes and hours tell different numbers of spans; with `today` = 0 of those that are
-- over. A day whose spans are gone, or are going since its time is up, keeps the sums that it has.
WITH
    (
        SELECT toInt64OrNull(extract(engine_full, 'TTL .*toIntervalDay\((\d+)\)'))
        FROM system.tables
        WHERE database = 'otel' AND name = 'otel_traces'
    ) AS kept_days
SELECT
    day, sum(n * (source = '')) AS spans, sum(n * (source = '5m')) AS fives, sum(n * (source = '1h')) AS hours,
    sum(n * (source = 'counting')) AS counting
FROM (
    SELECT toDate(Timestamp, 'UTC') AS day, count() AS n, '' AS source
    FROM otel.otel_traces
    WHERE SpanName IN ('mfu.step', 'mfu.window')
    GROUP BY day
    UNION ALL
    SELECT toDate(ts), sum(t.spans), '5m' FROM otel.mfu_sums_5m AS t GROUP BY toDate(ts)
    UNION ALL
    SELECT toDate(ts), sum(t.spans), '1h' FROM otel.mfu_sums_1h AS t GROUP BY toDate(ts)
    UNION ALL
    SELECT toDate(ts), sum(t.spans), 'counting' FROM otel.mfu_counting_1h AS t GROUP BY toDate(ts)
)
WHERE (isNull(kept_days) OR day > toDate(now('UTC')) - kept_days) AND ({today:UInt8} OR day < toDate(now('UTC')))
GROUP BY day
HAVING spans > 0 AND (spans != fives OR spans != hours OR spans != counting)
ORDER BY day
