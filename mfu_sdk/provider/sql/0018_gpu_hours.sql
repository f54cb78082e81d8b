-- The sums of mfu_gpus_5m once more, a row an hour: its five minutes (0 to 11) and their sums lie in arrays beside each
-- other, so that a fortnight is a twelfth of the rows and not one figure is coarser. `fives` holds the five minutes that
-- were told of, then numbers of samples and their sums: tensor (2, 3), engine (4, 5), util (6, 7), clock (8, 9),
-- power (10, 11), and numbers of samples of Xids (12), double-bit (13) and single-bit errors (14).
CREATE TABLE IF NOT EXISTS otel.mfu_gpus_1h (
    ts       DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host     LowCardinality(String) CODEC(ZSTD(1)),
    gpu      String CODEC(ZSTD(1)),
    slice    LowCardinality(String) CODEC(ZSTD(1)),
    profile  LowCardinality(String) CODEC(ZSTD(1)),
    gpu_type LowCardinality(String) CODEC(ZSTD(1)),
    fives    SimpleAggregateFunction(sumMap, Tuple(
        Array(UInt8), Array(UInt64), Array(Float64), Array(UInt64), Array(Float64), Array(UInt64), Array(Float64),
        Array(UInt64), Array(Float64), Array(UInt64), Array(Float64), Array(UInt64), Array(UInt64), Array(UInt64)
    )) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toDate(ts)
ORDER BY (host, gpu, slice, profile, gpu_type, ts)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;

-- Emptied first, so that it may be run again.
TRUNCATE TABLE otel.mfu_gpus_1h;

INSERT INTO otel.mfu_gpus_1h
SELECT
    toStartOfHour(ts, 'UTC') AS ts, host, gpu, slice, profile, gpu_type,
    ([toUInt8(intDiv(toMinute(f.ts, 'UTC'), 5))], [tensor_n], [tensor], [engine_n], [engine], [util_n], [util],
        [clock_n], [clock], [power_n], [power], [xid_n], [double_n], [single_n]) AS fives
FROM otel.mfu_gpus_5m AS f;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpus_1h_mv TO otel.mfu_gpus_1h AS
SELECT
    toStartOfHour(ts, 'UTC') AS ts, host, gpu, slice, profile, gpu_type,
    ([toUInt8(intDiv(toMinute(f.ts, 'UTC'), 5))], [tensor_n], [tensor], [engine_n], [engine], [util_n], [util],
        [clock_n], [clock], [power_n], [power], [xid_n], [double_n], [single_n]) AS fives
FROM otel.mfu_gpus_5m AS f;
