-- One row if any exporter of the provider's told of any GPU in [since, until), in steps of five minutes; else none.
SELECT 1 AS told
FROM otel.mfu_gpus_5m
WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 300, 'UTC')
    AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
LIMIT 1
