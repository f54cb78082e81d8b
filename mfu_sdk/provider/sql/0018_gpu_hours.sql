-- What exporters told of each GPU in each hour of the days that are over, reckoned from its five minutes: seconds in
-- which x was known (`x_s`) and mean × seconds (`x_w`), where a five minutes with a sample stands for all of itself. It
-- is no sum of what comes in, because a mean of five minutes is only there when all of it is; fill/gpu_hours.sql makes it
-- once a day is over, and again, replacing it, where more samples came late. `samples` tells what it was made of.
CREATE TABLE IF NOT EXISTS otel.mfu_gpus_1h (
    ts        DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host      LowCardinality(String) CODEC(ZSTD(1)),
    gpu       String CODEC(ZSTD(1)),
    slice     LowCardinality(String) CODEC(ZSTD(1)),
    profile   LowCardinality(String) CODEC(ZSTD(1)),
    gpu_type  LowCardinality(String) CODEC(ZSTD(1)),
    first     DateTime('UTC') CODEC(Delta, ZSTD(1)),
    last      DateTime('UTC') CODEC(Delta, ZSTD(1)),
    secs      UInt16 CODEC(ZSTD(1)),
    util_w    Float64 CODEC(ZSTD(1)),
    util_s    UInt16 CODEC(ZSTD(1)),
    engine_w  Float64 CODEC(ZSTD(1)),
    engine_s  UInt16 CODEC(ZSTD(1)),
    tensor_w  Float64 CODEC(ZSTD(1)),
    tensor_s  UInt16 CODEC(ZSTD(1)),
    both_w    Float64 CODEC(ZSTD(1)),
    both_s    UInt16 CODEC(ZSTD(1)),
    busy_w    Float64 CODEC(ZSTD(1)),
    busy_s    UInt16 CODEC(ZSTD(1)),
    power_w   Float64 CODEC(ZSTD(1)),
    power_s   UInt16 CODEC(ZSTD(1)),
    xid_n     UInt64 CODEC(ZSTD(1)),
    double_n  UInt64 CODEC(ZSTD(1)),
    single_n  UInt64 CODEC(ZSTD(1)),
    samples   UInt64 CODEC(ZSTD(1))
) ENGINE = ReplacingMergeTree(samples)
PARTITION BY toDate(ts)
ORDER BY (host, gpu, slice, profile, gpu_type, ts)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;
