-- Sums for every five minutes and device, never a ratio, so that rows add up whatever they are grouped by. A span falls
-- into the five minutes in which it starts. -1 stands for a rank, attempt or world size that the client did not send.
CREATE TABLE IF NOT EXISTS otel.mfu_rollup_5m (
    ts         DateTime('UTC') CODEC(Delta, ZSTD(1)),
    tenant     LowCardinality(String) CODEC(ZSTD(1)),
    workload   LowCardinality(String) CODEC(ZSTD(1)),
    family     LowCardinality(String) CODEC(ZSTD(1)),
    run_id     String CODEC(ZSTD(1)),
    attempt    Int64 CODEC(ZSTD(1)),
    rank       Int64 CODEC(ZSTD(1)),
    world_size Int64 CODEC(ZSTD(1)),
    host       LowCardinality(String) CODEC(ZSTD(1)),
    device     String CODEC(ZSTD(1)),
    gpu_type   LowCardinality(String) CODEC(ZSTD(1)),
    is_window  UInt8 CODEC(ZSTD(1)),
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
    batch_time_s            SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toDate(ts)
ORDER BY (tenant, workload, ts, run_id, attempt, rank, world_size, family, host, device, gpu_type, is_window)
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_rollup_5m_mv TO otel.mfu_rollup_5m AS
SELECT
    toStartOfInterval(Timestamp, INTERVAL 300 SECOND, 'UTC') AS ts,
    mfu_tenant_id AS tenant,
    mfu_workload_name AS workload,
    mfu_workload_family AS family,
    mfu_run_id AS run_id,
    ifNull(mfu_run_attempt, -1) AS attempt,
    ifNull(mfu_dist_rank, -1) AS rank,
    ifNull(mfu_dist_world_size, -1) AS world_size,
    ResourceAttributes['host.name'] AS host,
    if(ResourceAttributes['hw.id'] != '', ResourceAttributes['hw.id'], concat(host, '/', toString(rank))) AS device,
    ResourceAttributes['hw.name'] AS gpu_type,
    sum_is_window AS is_window,
    toUInt64(1) AS spans,
    sum_steps AS steps,
    sum_timed_steps AS timed_steps,
    sum_unknown_steps AS unknown_steps,
    sum_model_flop AS model_flop,
    sum_available_flop AS available_flop,
    sum_expected_flop AS expected_flop,
    sum_expected_available_flop AS expected_available_flop,
    sum_step_time_s AS step_time_s,
    sum_tokens AS tokens,
    sum_batch_s AS batch_s,
    sum_batch_time_s AS batch_time_s
FROM otel.otel_traces
WHERE SpanName IN ('mfu.step', 'mfu.window');

-- The same rows straight from the spans: for the edges of a range that no five minutes fill, and to rebuild a day.
CREATE VIEW IF NOT EXISTS otel.mfu_span_sums AS
SELECT
    Timestamp,
    toStartOfInterval(Timestamp, INTERVAL 300 SECOND, 'UTC') AS ts,
    mfu_tenant_id AS tenant,
    mfu_workload_name AS workload,
    mfu_workload_family AS family,
    mfu_run_id AS run_id,
    ifNull(mfu_run_attempt, -1) AS attempt,
    ifNull(mfu_dist_rank, -1) AS rank,
    ifNull(mfu_dist_world_size, -1) AS world_size,
    ResourceAttributes['host.name'] AS host,
    if(ResourceAttributes['hw.id'] != '', ResourceAttributes['hw.id'], concat(host, '/', toString(rank))) AS device,
    ResourceAttributes['hw.name'] AS gpu_type,
    sum_is_window AS is_window,
    toUInt64(1) AS spans,
    sum_steps AS steps,
    sum_timed_steps AS timed_steps,
    sum_unknown_steps AS unknown_steps,
    sum_model_flop AS model_flop,
    sum_available_flop AS available_flop,
    sum_expected_flop AS expected_flop,
    sum_expected_available_flop AS expected_available_flop,
    sum_step_time_s AS step_time_s,
    sum_tokens AS tokens,
    sum_batch_s AS batch_s,
    sum_batch_time_s AS batch_time_s
FROM otel.otel_traces
WHERE SpanName IN ('mfu.step', 'mfu.window');

-- A range [since, until), both in Unix nanoseconds: whole five minutes from the roll-up, the two edges from the spans.
CREATE VIEW IF NOT EXISTS otel.mfu_in_range AS
WITH
    intDiv({since:Int64} + 299999999999, 300000000000) * 300 AS whole_since_s,
    intDiv({until:Int64}, 300000000000) * 300 AS whole_until_s
SELECT * FROM otel.mfu_rollup_5m
WHERE ts >= toDateTime(whole_since_s, 'UTC') AND ts < toDateTime(whole_until_s, 'UTC')
UNION ALL
SELECT * EXCEPT (Timestamp) FROM otel.mfu_span_sums
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND (Timestamp < fromUnixTimestamp64Nano(whole_since_s * 1000000000)
        OR Timestamp >= fromUnixTimestamp64Nano(whole_until_s * 1000000000)
        OR whole_since_s >= whole_until_s);

-- What counts: a window replaces the steps of its process, wherever the range holds one.
CREATE VIEW IF NOT EXISTS otel.mfu_counted AS
SELECT * FROM otel.mfu_in_range(since = {since:Int64}, until = {until:Int64})
WHERE is_window OR (tenant, run_id, attempt, rank) NOT IN (
    SELECT DISTINCT tenant, run_id, attempt, rank
    FROM otel.mfu_in_range(since = {since:Int64}, until = {until:Int64})
    WHERE is_window
);
