-- The five-minute sums, rebuilt: with the dimensions that tell causes apart, and with where the time went.
--
-- What is known of a part of the spans only comes with the seconds of the steps that know it, so that a mean is the one
-- over the other and what nobody knew is nothing over nothing. A component of a window or step (data, comm, skew, host)
-- is in seconds; a load or quality (clock, queue, ...) is weighted by its steps' seconds. What is negative or no number
-- is not known. Spans are the truth: what these tables lose at a power cut is summed again when the store is opened,
-- so they need no fsync of their own.
DROP VIEW IF EXISTS otel.mfu_counted;

DROP VIEW IF EXISTS otel.mfu_in_range;

DROP VIEW IF EXISTS otel.mfu_span_sums;

DROP VIEW IF EXISTS otel.mfu_rollup_5m_mv;

-- What every sum asks of a span's maps, as columns: a range's edge would read whole maps of a day for some minutes.
ALTER TABLE otel.otel_traces
    ADD COLUMN IF NOT EXISTS hw_id LowCardinality(String) MATERIALIZED ResourceAttributes['hw.id'],
    ADD COLUMN IF NOT EXISTS hw_name LowCardinality(String) MATERIALIZED ResourceAttributes['hw.name'],
    ADD COLUMN IF NOT EXISTS hw_parent LowCardinality(String) MATERIALIZED ResourceAttributes['hw.parent'],
    ADD COLUMN IF NOT EXISTS node_name LowCardinality(String) MATERIALIZED
        if(ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
            ResourceAttributes['host.name']),
    ADD COLUMN IF NOT EXISTS error_type LowCardinality(String) MATERIALIZED SpanAttributes['error.type'],
    MODIFY COLUMN sum_is_timed UInt8 ALIAS sum_is_window OR (mfu_count_source != 'measured' AND error_type = ''),
    MODIFY COLUMN sum_tokens Nullable(Float64) ALIAS mfu_token_count * sum_weight * (error_type = ''),
    MODIFY COLUMN sum_step_time_s Nullable(Float64) ALIAS
        if(sum_is_window,
            if(mfu_step_time BETWEEN 0 AND 1e15, mfu_step_time, NULL),
            Duration / 1e9 * sum_weight * sum_is_timed),
    ADD COLUMN IF NOT EXISTS sum_hardware_flop Nullable(Float64) ALIAS
        if(sum_is_known AND mfu_hardware_flop BETWEEN 0 AND 1e300, mfu_hardware_flop * sum_weight, NULL);

CREATE TABLE IF NOT EXISTS otel.mfu_sums_5m (
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

-- Days whose spans are gone are taken over from the older sums; the others are summed from their spans by the store,
-- which finds them without any. Emptied first, so that it may be run again.
TRUNCATE TABLE otel.mfu_sums_5m;

INSERT INTO otel.mfu_sums_5m (
    ts, tenant, workload, family, run_id, attempt, rank, world_size, host, device, gpu_type, is_window, spans, steps,
    timed_steps, unknown_steps, model_flop, available_flop, expected_flop, expected_available_flop, step_time_s,
    tokens, batch_s, batch_time_s
)
SELECT
    ts, tenant, workload, family, run_id, attempt, rank, world_size, host, device, gpu_type, is_window, spans, steps,
    timed_steps, unknown_steps, model_flop, available_flop, expected_flop, expected_available_flop, step_time_s,
    tokens, batch_s, batch_time_s
FROM otel.mfu_rollup_5m
WHERE toDate(ts) NOT IN (
    SELECT DISTINCT toDate(Timestamp, 'UTC') FROM otel.otel_traces WHERE SpanName IN ('mfu.step', 'mfu.window')
);

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_sums_5m_mv TO otel.mfu_sums_5m AS
SELECT
    ts, tenant, workload, family, run_id, attempt, rank, world_size, host, device, gpu_type, phase, intent,
    fingerprint, link, link_best, mig_profile, parent, allocation_id, is_window, spans, steps, timed_steps,
    unknown_steps, model_flop, available_flop, expected_flop, expected_available_flop, step_time_s, tokens, batch_s,
    batch_time_s, hardware_flop,
    seconds * (data_time >= 0) AS data_known_s, greatest(data_time, 0) * stands_for * (seconds > 0) AS data_s,
    seconds * (comm_time >= 0) AS comm_known_s, greatest(comm_time, 0) * stands_for * (seconds > 0) AS comm_s,
    seconds * (skew_time >= 0) AS skew_known_s, greatest(skew_time, 0) * stands_for * (seconds > 0) AS skew_s,
    seconds * (host_time >= 0) AS host_known_s, greatest(host_time, 0) * stands_for * (seconds > 0) AS host_s,
    seconds * greatest(bus_rate, 0) AS bus_rate_weighted, seconds * (bus_rate >= 0) AS bus_rate_s,
    seconds * greatest(bus_peak, 0) AS bus_peak_weighted, seconds * (bus_peak >= 0) AS bus_peak_s,
    seconds * greatest(ideal_ratio, 0) AS ideal_ratio_weighted, seconds * (ideal_ratio >= 0) AS ideal_ratio_s,
    seconds * greatest(clock, 0) AS clock_weighted, seconds * (clock >= 0) AS clock_s,
    seconds * greatest(witness, 0) AS witness_weighted, seconds * (witness >= 0) AS witness_s,
    seconds * greatest(batch_feasible, 0) AS batch_feasible_weighted,
    seconds * (batch_feasible >= 0) AS batch_feasible_s,
    seconds * greatest(queue, 0) AS queue_weighted, seconds * (queue >= 0) AS queue_s,
    seconds * greatest(kv_free, 0) AS kv_free_weighted, seconds * (kv_free >= 0) AS kv_free_s,
    seconds * greatest(intensity, 0) AS intensity_weighted, seconds * (intensity >= 0) AS intensity_s,
    seconds * greatest(memory_rate, 0) AS memory_rate_weighted, seconds * (memory_rate >= 0) AS memory_rate_s,
    seconds * greatest(feasible_mfu, 0) AS feasible_mfu_weighted, seconds * (feasible_mfu >= 0) AS feasible_mfu_s,
    seconds * greatest(latency_target, 0) AS latency_target_weighted,
    seconds * (latency_target >= 0) AS latency_target_s
FROM (
    SELECT
        toStartOfInterval(Timestamp, INTERVAL 300 SECOND, 'UTC') AS ts,
        mfu_tenant_id AS tenant,
        mfu_workload_name AS workload,
        mfu_workload_family AS family,
        mfu_run_id AS run_id,
        ifNull(mfu_run_attempt, -1) AS attempt,
        ifNull(mfu_dist_rank, -1) AS rank,
        ifNull(mfu_dist_world_size, -1) AS world_size,
        node_name AS host,
        if(hw_id != '', hw_id, concat(host, '/', toString(rank))) AS device,
        hw_name AS gpu_type,
        mfu_phase AS phase,
        mfu_config_intent AS intent,
        mfu_config_fingerprint AS fingerprint,
        mfu_topology_link AS link,
        mfu_topology_link_best AS link_best,
        mfu_mig_profile AS mig_profile,
        hw_parent AS parent,
        mfu_allocation_id AS allocation_id,
        sum_is_window AS is_window,
        toUInt64(1) AS spans,
        sum_steps AS steps, sum_timed_steps AS timed_steps, sum_unknown_steps AS unknown_steps,
        sum_model_flop AS model_flop, sum_available_flop AS available_flop, sum_expected_flop AS expected_flop,
        sum_expected_available_flop AS expected_available_flop, sum_step_time_s AS step_time_s, sum_tokens AS tokens,
        sum_batch_s AS batch_s, sum_batch_time_s AS batch_time_s, sum_hardware_flop AS hardware_flop,
        ifNull(step_time_s, 0) AS seconds, if(is_window, 1, sum_weight) AS stands_for,
        assumeNotNull(if(mfu_step_data_time BETWEEN 0 AND 1e30, mfu_step_data_time, -1)) AS data_time,
        assumeNotNull(if(mfu_step_comm_time BETWEEN 0 AND 1e30, mfu_step_comm_time, -1)) AS comm_time,
        assumeNotNull(if(mfu_step_skew_time BETWEEN 0 AND 1e30, mfu_step_skew_time, -1)) AS skew_time,
        assumeNotNull(if(mfu_step_host_time BETWEEN 0 AND 1e30, mfu_step_host_time, -1)) AS host_time,
        assumeNotNull(if(mfu_comm_bus_rate BETWEEN 0 AND 1e30, mfu_comm_bus_rate, -1)) AS bus_rate,
        assumeNotNull(if(mfu_comm_bus_rate_peak BETWEEN 0 AND 1e30, mfu_comm_bus_rate_peak, -1)) AS bus_peak,
        assumeNotNull(if(mfu_comm_ideal_ratio BETWEEN 0 AND 1e30, mfu_comm_ideal_ratio, -1)) AS ideal_ratio,
        assumeNotNull(if(mfu_clock_ratio BETWEEN 0 AND 1e30, mfu_clock_ratio, -1)) AS clock,
        assumeNotNull(if(mfu_witness_utilization BETWEEN 0 AND 1e30, mfu_witness_utilization, -1)) AS witness,
        assumeNotNull(if(mfu_batch_feasible BETWEEN 0 AND 1e30, mfu_batch_feasible, -1)) AS batch_feasible,
        assumeNotNull(if(mfu_queue_waiting BETWEEN 0 AND 1e30, mfu_queue_waiting, -1)) AS queue,
        assumeNotNull(if(mfu_kv_cache_free_ratio BETWEEN 0 AND 1e30, mfu_kv_cache_free_ratio, -1)) AS kv_free,
        assumeNotNull(if(mfu_arithmetic_intensity BETWEEN 0 AND 1e30, mfu_arithmetic_intensity, -1)) AS intensity,
        assumeNotNull(if(mfu_peak_memory_rate BETWEEN 0 AND 1e30, mfu_peak_memory_rate, -1)) AS memory_rate,
        assumeNotNull(if(mfu_expected_feasible BETWEEN 0 AND 1e30, mfu_expected_feasible, -1)) AS feasible_mfu,
        assumeNotNull(if(mfu_latency_target BETWEEN 0 AND 1e30, mfu_latency_target, -1)) AS latency_target
    FROM otel.otel_traces
    WHERE SpanName IN ('mfu.step', 'mfu.window')
);

-- The same rows straight from the spans: for the edges of a range that no five minutes fill, and to rebuild a day.
CREATE VIEW IF NOT EXISTS otel.mfu_span_sums AS
SELECT
    Timestamp,
    ts, tenant, workload, family, run_id, attempt, rank, world_size, host, device, gpu_type, phase, intent,
    fingerprint, link, link_best, mig_profile, parent, allocation_id, is_window, spans, steps, timed_steps,
    unknown_steps, model_flop, available_flop, expected_flop, expected_available_flop, step_time_s, tokens, batch_s,
    batch_time_s, hardware_flop,
    seconds * (data_time >= 0) AS data_known_s, greatest(data_time, 0) * stands_for * (seconds > 0) AS data_s,
    seconds * (comm_time >= 0) AS comm_known_s, greatest(comm_time, 0) * stands_for * (seconds > 0) AS comm_s,
    seconds * (skew_time >= 0) AS skew_known_s, greatest(skew_time, 0) * stands_for * (seconds > 0) AS skew_s,
    seconds * (host_time >= 0) AS host_known_s, greatest(host_time, 0) * stands_for * (seconds > 0) AS host_s,
    seconds * greatest(bus_rate, 0) AS bus_rate_weighted, seconds * (bus_rate >= 0) AS bus_rate_s,
    seconds * greatest(bus_peak, 0) AS bus_peak_weighted, seconds * (bus_peak >= 0) AS bus_peak_s,
    seconds * greatest(ideal_ratio, 0) AS ideal_ratio_weighted, seconds * (ideal_ratio >= 0) AS ideal_ratio_s,
    seconds * greatest(clock, 0) AS clock_weighted, seconds * (clock >= 0) AS clock_s,
    seconds * greatest(witness, 0) AS witness_weighted, seconds * (witness >= 0) AS witness_s,
    seconds * greatest(batch_feasible, 0) AS batch_feasible_weighted,
    seconds * (batch_feasible >= 0) AS batch_feasible_s,
    seconds * greatest(queue, 0) AS queue_weighted, seconds * (queue >= 0) AS queue_s,
    seconds * greatest(kv_free, 0) AS kv_free_weighted, seconds * (kv_free >= 0) AS kv_free_s,
    seconds * greatest(intensity, 0) AS intensity_weighted, seconds * (intensity >= 0) AS intensity_s,
    seconds * greatest(memory_rate, 0) AS memory_rate_weighted, seconds * (memory_rate >= 0) AS memory_rate_s,
    seconds * greatest(feasible_mfu, 0) AS feasible_mfu_weighted, seconds * (feasible_mfu >= 0) AS feasible_mfu_s,
    seconds * greatest(latency_target, 0) AS latency_target_weighted,
    seconds * (latency_target >= 0) AS latency_target_s
FROM (
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
        node_name AS host,
        if(hw_id != '', hw_id, concat(host, '/', toString(rank))) AS device,
        hw_name AS gpu_type,
        mfu_phase AS phase,
        mfu_config_intent AS intent,
        mfu_config_fingerprint AS fingerprint,
        mfu_topology_link AS link,
        mfu_topology_link_best AS link_best,
        mfu_mig_profile AS mig_profile,
        hw_parent AS parent,
        mfu_allocation_id AS allocation_id,
        sum_is_window AS is_window,
        toUInt64(1) AS spans,
        sum_steps AS steps, sum_timed_steps AS timed_steps, sum_unknown_steps AS unknown_steps,
        sum_model_flop AS model_flop, sum_available_flop AS available_flop, sum_expected_flop AS expected_flop,
        sum_expected_available_flop AS expected_available_flop, sum_step_time_s AS step_time_s, sum_tokens AS tokens,
        sum_batch_s AS batch_s, sum_batch_time_s AS batch_time_s, sum_hardware_flop AS hardware_flop,
        ifNull(step_time_s, 0) AS seconds, if(is_window, 1, sum_weight) AS stands_for,
        assumeNotNull(if(mfu_step_data_time BETWEEN 0 AND 1e30, mfu_step_data_time, -1)) AS data_time,
        assumeNotNull(if(mfu_step_comm_time BETWEEN 0 AND 1e30, mfu_step_comm_time, -1)) AS comm_time,
        assumeNotNull(if(mfu_step_skew_time BETWEEN 0 AND 1e30, mfu_step_skew_time, -1)) AS skew_time,
        assumeNotNull(if(mfu_step_host_time BETWEEN 0 AND 1e30, mfu_step_host_time, -1)) AS host_time,
        assumeNotNull(if(mfu_comm_bus_rate BETWEEN 0 AND 1e30, mfu_comm_bus_rate, -1)) AS bus_rate,
        assumeNotNull(if(mfu_comm_bus_rate_peak BETWEEN 0 AND 1e30, mfu_comm_bus_rate_peak, -1)) AS bus_peak,
        assumeNotNull(if(mfu_comm_ideal_ratio BETWEEN 0 AND 1e30, mfu_comm_ideal_ratio, -1)) AS ideal_ratio,
        assumeNotNull(if(mfu_clock_ratio BETWEEN 0 AND 1e30, mfu_clock_ratio, -1)) AS clock,
        assumeNotNull(if(mfu_witness_utilization BETWEEN 0 AND 1e30, mfu_witness_utilization, -1)) AS witness,
        assumeNotNull(if(mfu_batch_feasible BETWEEN 0 AND 1e30, mfu_batch_feasible, -1)) AS batch_feasible,
        assumeNotNull(if(mfu_queue_waiting BETWEEN 0 AND 1e30, mfu_queue_waiting, -1)) AS queue,
        assumeNotNull(if(mfu_kv_cache_free_ratio BETWEEN 0 AND 1e30, mfu_kv_cache_free_ratio, -1)) AS kv_free,
        assumeNotNull(if(mfu_arithmetic_intensity BETWEEN 0 AND 1e30, mfu_arithmetic_intensity, -1)) AS intensity,
        assumeNotNull(if(mfu_peak_memory_rate BETWEEN 0 AND 1e30, mfu_peak_memory_rate, -1)) AS memory_rate,
        assumeNotNull(if(mfu_expected_feasible BETWEEN 0 AND 1e30, mfu_expected_feasible, -1)) AS feasible_mfu,
        assumeNotNull(if(mfu_latency_target BETWEEN 0 AND 1e30, mfu_latency_target, -1)) AS latency_target
    FROM otel.otel_traces
    WHERE SpanName IN ('mfu.step', 'mfu.window')
);
