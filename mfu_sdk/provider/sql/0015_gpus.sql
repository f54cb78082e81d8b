-- What the provider's own dcgm-exporters tell of each GPU, in sums of five minutes: numbers of samples and their sums,
-- never ratios, so that a mean over any time is the one over the other, and no sample is no figure.
--
-- Only what came with a provider's credential counts: the receiver stamps its name as "provider:…", which no tenant can
-- have. A sample beyond what its metric can be (DCGM's blanks are near 2^63) is none. Names and labels are those of
-- NVIDIA/dcgm-exporter. A power cut between a point and its sum loses a sample of a mean; nothing is fsynced for that.
CREATE TABLE IF NOT EXISTS otel.mfu_gpu_points (
    at       DateTime64(9),
    host     String,
    gpu      String,
    slice    String,
    profile  String,
    gpu_type String,
    metric   String,
    value    Float64
) ENGINE = Null;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpu_points_gauge_mv TO otel.mfu_gpu_points AS
SELECT
    TimeUnix AS at,
    multiIf(Attributes['Hostname'] != '', Attributes['Hostname'],
        ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
        ResourceAttributes['host.name']) AS host,
    if(Attributes['UUID'] != '', Attributes['UUID'], concat(host, '/', Attributes['gpu'])) AS gpu,
    Attributes['GPU_I_ID'] AS slice, Attributes['GPU_I_PROFILE'] AS profile, Attributes['modelName'] AS gpu_type,
    substring(MetricName, 6) AS metric, Value AS value
FROM otel.otel_metrics_gauge
WHERE startsWith(MetricName, 'DCGM_FI_') AND startsWith(ResourceAttributes['mfu.tenant.id'], 'provider:');

-- The Collector makes sums of what dcgm-exporter calls counters, such as ECC errors.
CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpu_points_sum_mv TO otel.mfu_gpu_points AS
SELECT
    TimeUnix AS at,
    multiIf(Attributes['Hostname'] != '', Attributes['Hostname'],
        ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
        ResourceAttributes['host.name']) AS host,
    if(Attributes['UUID'] != '', Attributes['UUID'], concat(host, '/', Attributes['gpu'])) AS gpu,
    Attributes['GPU_I_ID'] AS slice, Attributes['GPU_I_PROFILE'] AS profile, Attributes['modelName'] AS gpu_type,
    substring(MetricName, 6) AS metric, Value AS value
FROM otel.otel_metrics_sum
WHERE startsWith(MetricName, 'DCGM_FI_') AND startsWith(ResourceAttributes['mfu.tenant.id'], 'provider:')
    AND AggregationTemporality = 2;

-- One row a GPU and five minutes; of one that MIG cuts, a row for each slice (GPU_I_ID).
CREATE TABLE IF NOT EXISTS otel.mfu_gpus_5m (
    ts       DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host     LowCardinality(String) CODEC(ZSTD(1)),
    gpu      String CODEC(ZSTD(1)),
    slice    LowCardinality(String) CODEC(ZSTD(1)),
    profile  LowCardinality(String) CODEC(ZSTD(1)),
    gpu_type LowCardinality(String) CODEC(ZSTD(1)),
    tensor_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    tensor   SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    engine_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    engine   SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    util_n   SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    util     SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    clock_n  SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    clock    SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    power_n  SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    power    SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    xid_n    SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    double_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    single_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toDate(ts)
ORDER BY (host, gpu, slice, profile, gpu_type, ts)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpus_5m_mv TO otel.mfu_gpus_5m AS
SELECT
    toDateTime(toStartOfFiveMinutes(at, 'UTC'), 'UTC') AS ts, host, gpu, slice, profile, gpu_type,
    countIf(is_tensor) AS tensor_n, sumIf(value, is_tensor) AS tensor,
    countIf(is_engine) AS engine_n, sumIf(value, is_engine) AS engine,
    countIf(is_util) AS util_n, sumIf(value / 100, is_util) AS util,
    countIf(is_clock) AS clock_n, sumIf(value, is_clock) AS clock,
    countIf(is_power) AS power_n, sumIf(value, is_power) AS power,
    countIf(metric = 'FI_DEV_XID_ERRORS' AND value >= 0 AND value < 65536) AS xid_n,
    countIf(metric = 'FI_DEV_ECC_DBE_VOL_TOTAL' AND value >= 0 AND value < 1e15) AS double_n,
    countIf(metric = 'FI_DEV_ECC_SBE_VOL_TOTAL' AND value >= 0 AND value < 1e15) AS single_n
FROM (
    SELECT
        at, host, gpu, slice, profile, gpu_type, metric, value,
        metric = 'FI_PROF_PIPE_TENSOR_ACTIVE' AND value BETWEEN 0 AND 1 AS is_tensor,
        metric = 'FI_PROF_GR_ENGINE_ACTIVE' AND value BETWEEN 0 AND 1 AS is_engine,
        metric = 'FI_DEV_GPU_UTIL' AND value BETWEEN 0 AND 100 AS is_util,
        metric = 'FI_DEV_SM_CLOCK' AND value > 0 AND value < 10000 AS is_clock,
        metric = 'FI_DEV_POWER_USAGE' AND value >= 0 AND value < 100000 AS is_power
    FROM otel.mfu_gpu_points
)
GROUP BY ts, host, gpu, slice, profile, gpu_type
HAVING tensor_n + engine_n + util_n + clock_n + power_n + xid_n + double_n + single_n > 0;

-- Xids and counts of ECC errors other than 0, which are rare: when a GPU first and last showed each in five minutes.
CREATE TABLE IF NOT EXISTS otel.mfu_gpu_errors_5m (
    ts     DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host   LowCardinality(String) CODEC(ZSTD(1)),
    gpu    String CODEC(ZSTD(1)),
    metric LowCardinality(String) CODEC(ZSTD(1)),
    value  UInt64 CODEC(ZSTD(1)),
    first  SimpleAggregateFunction(min, DateTime64(9)) CODEC(ZSTD(1)),
    last   SimpleAggregateFunction(max, DateTime64(9)) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toDate(ts)
ORDER BY (host, gpu, metric, ts, value)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpu_errors_5m_mv TO otel.mfu_gpu_errors_5m AS
SELECT
    toDateTime(toStartOfFiveMinutes(at, 'UTC'), 'UTC') AS ts, host, gpu, kind AS metric, toUInt64(shown) AS value,
    min(at) AS first, max(at) AS last
FROM (
    SELECT
        at, host, gpu, value AS shown,
        transform(metric, ['FI_DEV_XID_ERRORS', 'FI_DEV_ECC_DBE_VOL_TOTAL', 'FI_DEV_ECC_SBE_VOL_TOTAL'],
            ['xid', 'double', 'single'], '') AS kind
    FROM otel.mfu_gpu_points
)
WHERE kind != '' AND shown >= 1 AND shown < if(kind = 'xid', 65536, 1e15)
GROUP BY ts, host, gpu, metric, value;
