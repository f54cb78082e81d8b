-- Runs that ended in [since, until) on each host, and those of them and of the steps that failed. A step that failed is
-- always sent as a span, unless a client sends no spans of steps at all: `step_spans` is 0 then, and failures unknown.
SELECT
    node_name AS host,
    countIf(SpanName = 'mfu.step') AS step_spans,
    countIf(SpanName = 'mfu.step' AND error_type != '') AS failed_steps,
    countIf(SpanName = 'mfu.run') AS runs,
    countIf(SpanName = 'mfu.run' AND (error_type != '' OR StatusCode = 'Error')) AS failed_runs
FROM otel.otel_traces
WHERE (SpanName = 'mfu.step' AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})
        AND Timestamp < fromUnixTimestamp64Nano({until:Int64}))
    OR (SpanName = 'mfu.run' AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
        AND toUnixTimestamp64Nano(Timestamp) + Duration >= {since:Int64}
        AND toUnixTimestamp64Nano(Timestamp) + Duration < {until:Int64})
GROUP BY host
HAVING host != ''
ORDER BY host
