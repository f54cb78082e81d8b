-- Windows that start in [since, until), by five minutes.
SELECT intDiv(toUnixTimestamp64Nano(Timestamp), 300000000000) AS bucket, count() AS windows
FROM otel.otel_traces
WHERE SpanName = 'mfu.window'
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
GROUP BY bucket
ORDER BY bucket
