-- What is wrong with which workload on which day. A day is judged as often as it changes, and what was found the last
-- time holds: rows of earlier judgements are replaced, or left behind by the day's newer version. What people decided
-- about a cause of a workload is kept apart from it and holds from a day on.
CREATE TABLE IF NOT EXISTS otel.mfu_findings (
    day           Date CODEC(Delta, ZSTD(1)),
    tenant        LowCardinality(String) CODEC(ZSTD(1)),
    workload      LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    run_id        Nullable(String) CODEC(ZSTD(1)),
    gpu_type      LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    world_size    Nullable(Int64) CODEC(ZSTD(1)),
    phase         LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    cause         LowCardinality(String) CODEC(ZSTD(1)),
    series        String CODEC(ZSTD(1)),
    loss_share    Float64 CODEC(ZSTD(1)),
    confidence    Float64 CODEC(ZSTD(1)),
    evidence      String CODEC(ZSTD(1)),
    remedy        String CODEC(ZSTD(1)),
    judged_unix_ns Int64 CODEC(ZSTD(1))
) ENGINE = ReplacingMergeTree(judged_unix_ns)
PARTITION BY toYYYYMM(day)
ORDER BY (day, tenant, series)
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_judged_days (
    day            Date CODEC(Delta, ZSTD(1)),
    judged_unix_ns Int64 CODEC(ZSTD(1))
) ENGINE = ReplacingMergeTree(judged_unix_ns)
ORDER BY day
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_finding_states (
    series     String CODEC(ZSTD(1)),
    day        Date CODEC(Delta, ZSTD(1)),
    state      LowCardinality(String) CODEC(ZSTD(1)),
    by         String CODEC(ZSTD(1)),
    note       String CODEC(ZSTD(1)),
    at_unix_ns Int64 CODEC(ZSTD(1))
) ENGINE = MergeTree
ORDER BY (series, at_unix_ns)
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;
