-- The same sums for every hour, fed from the five minutes, so that a span is taken apart once. A long range reads whole
-- hours from here, whole five minutes beside them, and only its two edges from the spans.
CREATE TABLE IF NOT EXISTS otel.mfu_sums_1h (
    ts                      DateTime('UTC') CODEC(Delta, ZSTD(1)),
    tenant                  LowCardinality(String) CODEC(ZSTD(1)),
    workload                LowCardinality(String) CODEC(ZSTD(1)),
    family                  LowCardinality(String) CODEC(ZSTD(1)),
    run_id                  String CODEC(ZSTD(1)),
    attempt                 Int64 CODEC(ZSTD(1)),
    rank                    Int64 CODEC(ZSTD(1)),
    world_size              Int64 CODEC(ZSTD(1)),
    host                    LowCardinality(String) CODEC(ZSTD(1)),
    device                  String CODEC(ZSTD(1)),
    gpu_type                LowCardinality(String) CODEC(ZSTD(1)),
    phase                   LowCardinality(String) CODEC(ZSTD(1)),
    intent                  LowCardinality(String) CODEC(ZSTD(1)),
    fingerprint             LowCardinality(String) CODEC(ZSTD(1)),
    link                    LowCardinality(String) CODEC(ZSTD(1)),
    link_best               LowCardinality(String) CODEC(ZSTD(1)),
    mig_profile             LowCardinality(String) CODEC(ZSTD(1)),
    parent                  String CODEC(ZSTD(1)),
    allocation_id           LowCardinality(String) CODEC(ZSTD(1)),
    is_window               UInt8 CODEC(ZSTD(1)),
    spans                   SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    steps                   SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    timed_steps             SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    unknown_steps           SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    model_flop              SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    available_flop          SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    expected_flop           SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    expected_available_flop SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    step_time_s             SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    tokens                  SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    batch_s                 SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    batch_time_s            SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    hardware_flop           SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    data_known_s            SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    data_s                  SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    comm_known_s            SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    comm_s                  SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    skew_known_s            SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    skew_s                  SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    host_known_s            SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    host_s                  SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    bus_rate_weighted       SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    bus_rate_s              SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    bus_peak_weighted       SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    bus_peak_s              SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    ideal_ratio_weighted    SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    ideal_ratio_s           SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    clock_weighted          SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    clock_s                 SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    witness_weighted        SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    witness_s               SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    batch_feasible_weighted SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    batch_feasible_s        SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    queue_weighted          SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    queue_s                 SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    kv_free_weighted        SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    kv_free_s               SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    intensity_weighted      SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    intensity_s             SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    memory_rate_weighted    SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    memory_rate_s           SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    feasible_mfu_weighted   SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    feasible_mfu_s          SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    latency_target_weighted SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    latency_target_s        SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toDate(ts)
PRIMARY KEY (tenant, workload, ts)
ORDER BY (
    tenant, workload, ts, run_id, attempt, rank, world_size, family, host, device, gpu_type, phase, intent, fingerprint,
    link, link_best, mig_profile, parent, allocation_id, is_window
)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

TRUNCATE TABLE otel.mfu_sums_1h;

INSERT INTO otel.mfu_sums_1h SELECT toStartOfHour(ts, 'UTC') AS ts, * EXCEPT (ts) FROM otel.mfu_sums_5m;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_sums_1h_mv TO otel.mfu_sums_1h AS
SELECT toStartOfHour(ts, 'UTC') AS ts, * EXCEPT (ts) FROM otel.mfu_sums_5m;

DROP TABLE IF EXISTS otel.mfu_rollup_5m;

-- How each hour's spans were counted: by which denominators and conventions, and with what least coverage.
CREATE TABLE IF NOT EXISTS otel.mfu_counting_1h (
    ts          DateTime('UTC') CODEC(Delta, ZSTD(1)),
    tenant      LowCardinality(String) CODEC(ZSTD(1)),
    workload    LowCardinality(String) CODEC(ZSTD(1)),
    gpu_type    LowCardinality(String) CODEC(ZSTD(1)),
    world_size  Int64 CODEC(ZSTD(1)),
    peak_dtype  LowCardinality(String) CODEC(ZSTD(1)),
    peak_source LowCardinality(String) CODEC(ZSTD(1)),
    convention  LowCardinality(String) CODEC(ZSTD(1)),
    spans       SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    coverage    SimpleAggregateFunction(min, Nullable(Float64)) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toDate(ts)
ORDER BY (tenant, workload, ts, gpu_type, world_size, peak_dtype, peak_source, convention)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_counting_1h_mv TO otel.mfu_counting_1h AS
SELECT
    toStartOfHour(Timestamp, 'UTC') AS ts, mfu_tenant_id AS tenant, mfu_workload_name AS workload, hw_name AS gpu_type,
    ifNull(mfu_dist_world_size, -1) AS world_size, mfu_peak_dtype AS peak_dtype, mfu_peak_source AS peak_source,
    mfu_convention AS convention, count() AS spans, min(mfu_count_coverage) AS coverage
FROM otel.otel_traces
WHERE SpanName IN ('mfu.step', 'mfu.window')
GROUP BY ts, tenant, workload, gpu_type, world_size, peak_dtype, peak_source, convention;

-- A range [since, until), both in Unix nanoseconds, in rows no coarser than `grain_s` seconds: 300, or a multiple of
-- 3600, with which whole hours are read as such.
CREATE VIEW IF NOT EXISTS otel.mfu_in_range AS
WITH
    intDiv({since:Int64} + 299999999999, 300000000000) * 300 AS fives_since_s,
    intDiv({until:Int64}, 300000000000) * 300 AS fives_until_s,
    intDiv({until:Int64}, 3600000000000) * 3600 AS hours_until_s,
    if({grain_s:UInt32} % 3600 = 0, intDiv({since:Int64} + 3599999999999, 3600000000000) * 3600, hours_until_s)
        AS hours_since_s
SELECT * FROM otel.mfu_sums_1h
WHERE ts >= toDateTime(hours_since_s, 'UTC') AND ts < toDateTime(hours_until_s, 'UTC')
UNION ALL
SELECT * FROM otel.mfu_sums_5m
WHERE ts >= toDateTime(fives_since_s, 'UTC') AND ts < toDateTime(fives_until_s, 'UTC')
    AND (ts < toDateTime(hours_since_s, 'UTC') OR ts >= toDateTime(hours_until_s, 'UTC')
        OR hours_since_s >= hours_until_s)
UNION ALL
SELECT * EXCEPT (Timestamp) FROM otel.mfu_span_sums
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND (Timestamp < fromUnixTimestamp64Nano(fives_since_s * 1000000000)
        OR Timestamp >= fromUnixTimestamp64Nano(fives_until_s * 1000000000)
        OR fives_since_s >= fives_until_s);

-- The processes that sent a window in a range: the same three parts, and nothing of them but the names.
CREATE VIEW IF NOT EXISTS otel.mfu_windowed AS
WITH
    intDiv({since:Int64} + 299999999999, 300000000000) * 300 AS fives_since_s,
    intDiv({until:Int64}, 300000000000) * 300 AS fives_until_s,
    intDiv({until:Int64}, 3600000000000) * 3600 AS hours_until_s,
    if({grain_s:UInt32} % 3600 = 0, intDiv({since:Int64} + 3599999999999, 3600000000000) * 3600, hours_until_s)
        AS hours_since_s
SELECT tenant, run_id, attempt, rank FROM otel.mfu_sums_1h
WHERE is_window AND ts >= toDateTime(hours_since_s, 'UTC') AND ts < toDateTime(hours_until_s, 'UTC')
UNION ALL
SELECT tenant, run_id, attempt, rank FROM otel.mfu_sums_5m
WHERE is_window AND ts >= toDateTime(fives_since_s, 'UTC') AND ts < toDateTime(fives_until_s, 'UTC')
    AND (ts < toDateTime(hours_since_s, 'UTC') OR ts >= toDateTime(hours_until_s, 'UTC')
        OR hours_since_s >= hours_until_s)
UNION ALL
SELECT mfu_tenant_id, mfu_run_id, ifNull(mfu_run_attempt, -1), ifNull(mfu_dist_rank, -1) FROM otel.otel_traces
WHERE SpanName = 'mfu.window'
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND (Timestamp < fromUnixTimestamp64Nano(fives_since_s * 1000000000)
        OR Timestamp >= fromUnixTimestamp64Nano(fives_until_s * 1000000000)
        OR fives_since_s >= fives_until_s);

-- What counts: a window replaces the steps of its process, wherever the range holds one.
CREATE VIEW IF NOT EXISTS otel.mfu_counted AS
SELECT * FROM otel.mfu_in_range(since = {since:Int64}, until = {until:Int64}, grain_s = {grain_s:UInt32})
WHERE is_window OR (tenant, run_id, attempt, rank) NOT IN (
    SELECT tenant, run_id, attempt, rank
    FROM otel.mfu_windowed(since = {since:Int64}, until = {until:Int64}, grain_s = {grain_s:UInt32})
);
