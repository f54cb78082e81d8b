-- The sums, with what the interval of the expected MFU is made of, and with which steps each row is of.
--
-- An interval's ends are kept beside the expectation over the same steps: Σ low, Σ high and Σ expected, each × available
-- FLOPs, over the spans that tell all three. So the ends are the expected MFU × Σ low / Σ expected and × Σ high /
-- Σ expected, which lie on their sides of it whatever is summed up. Ends that lie on the wrong sides are not known.
--
-- process stands for a rank of an attempt at a run: which processes sent windows is asked in every read, and a number is
-- looked up in a quarter of the time that four names take.
--
-- step_first and step_last are the numbers of the first and last steps of a process's windows: what a later attempt of
-- the run does again begins at its first.
ALTER TABLE otel.otel_traces
    ADD COLUMN IF NOT EXISTS mfu_expected_low Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected.low']),
    ADD COLUMN IF NOT EXISTS mfu_expected_high Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected.high']),
    ADD COLUMN IF NOT EXISTS sum_expected_interval_flop Nullable(Float64) ALIAS
        if(ifNull(mfu_expected > 0 AND mfu_expected_low > 0 AND mfu_expected_low <= mfu_expected
                AND mfu_expected_high >= mfu_expected AND isFinite(mfu_expected_high), 0),
            sum_expected_flop, NULL),
    ADD COLUMN IF NOT EXISTS sum_step_first Nullable(Int64) ALIAS
        if(ifNull(sum_is_window AND mfu_window_step_first >= 0 AND mfu_window_step_count > 0, 0),
            mfu_window_step_first, NULL),
    ADD COLUMN IF NOT EXISTS sum_step_last Nullable(Int64) ALIAS sum_step_first + mfu_window_step_count - 1;

ALTER TABLE otel.mfu_sums_5m
    ADD COLUMN IF NOT EXISTS expected_low_flop      SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_high_flop     SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_interval_flop SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_first             SimpleAggregateFunction(min, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_last              SimpleAggregateFunction(max, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS process UInt64 DEFAULT cityHash64(tenant, run_id, attempt, rank) CODEC(ZSTD(1));

ALTER TABLE otel.mfu_sums_1h
    ADD COLUMN IF NOT EXISTS expected_low_flop      SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_high_flop     SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_interval_flop SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_first             SimpleAggregateFunction(min, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_last              SimpleAggregateFunction(max, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS process UInt64 DEFAULT cityHash64(tenant, run_id, attempt, rank) CODEC(ZSTD(1));

DROP VIEW IF EXISTS otel.mfu_counted;

DROP VIEW IF EXISTS otel.mfu_windowed;

DROP VIEW IF EXISTS otel.mfu_in_range;

DROP VIEW IF EXISTS otel.mfu_span_sums;

DROP VIEW IF EXISTS otel.mfu_sums_1h_mv;

DROP VIEW IF EXISTS otel.mfu_sums_5m_mv;

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
    seconds * (latency_target >= 0) AS latency_target_s,
    expected_interval_flop * expected_low / expected AS expected_low_flop,
    expected_interval_flop * expected_high / expected AS expected_high_flop, expected_interval_flop, step_first, step_last,
    cityHash64(tenant, run_id, attempt, rank) AS process
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
        assumeNotNull(if(mfu_latency_target BETWEEN 0 AND 1e30, mfu_latency_target, -1)) AS latency_target,
        sum_expected_interval_flop AS expected_interval_flop, mfu_expected AS expected,
        mfu_expected_low AS expected_low, mfu_expected_high AS expected_high,
        sum_step_first AS step_first, sum_step_last AS step_last
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
    seconds * (latency_target >= 0) AS latency_target_s,
    expected_interval_flop * expected_low / expected AS expected_low_flop,
    expected_interval_flop * expected_high / expected AS expected_high_flop, expected_interval_flop, step_first, step_last,
    cityHash64(tenant, run_id, attempt, rank) AS process
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
        assumeNotNull(if(mfu_latency_target BETWEEN 0 AND 1e30, mfu_latency_target, -1)) AS latency_target,
        sum_expected_interval_flop AS expected_interval_flop, mfu_expected AS expected,
        mfu_expected_low AS expected_low, mfu_expected_high AS expected_high,
        sum_step_first AS step_first, sum_step_last AS step_last
    FROM otel.otel_traces
    WHERE SpanName IN ('mfu.step', 'mfu.window')
);

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_sums_1h_mv TO otel.mfu_sums_1h AS
SELECT toStartOfHour(ts, 'UTC') AS ts, * EXCEPT (ts) FROM otel.mfu_sums_5m;

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
SELECT process FROM otel.mfu_sums_1h
WHERE is_window AND ts >= toDateTime(hours_since_s, 'UTC') AND ts < toDateTime(hours_until_s, 'UTC')
UNION ALL
SELECT process FROM otel.mfu_sums_5m
WHERE is_window AND ts >= toDateTime(fives_since_s, 'UTC') AND ts < toDateTime(fives_until_s, 'UTC')
    AND (ts < toDateTime(hours_since_s, 'UTC') OR ts >= toDateTime(hours_until_s, 'UTC')
        OR hours_since_s >= hours_until_s)
UNION ALL
SELECT cityHash64(mfu_tenant_id, mfu_run_id, ifNull(mfu_run_attempt, -1), ifNull(mfu_dist_rank, -1))
FROM otel.otel_traces
WHERE SpanName = 'mfu.window'
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND (Timestamp < fromUnixTimestamp64Nano(fives_since_s * 1000000000)
        OR Timestamp >= fromUnixTimestamp64Nano(fives_until_s * 1000000000)
        OR fives_since_s >= fives_until_s);

-- What counts: a window replaces the steps of its process, wherever the range holds one.
CREATE VIEW IF NOT EXISTS otel.mfu_counted AS
SELECT * FROM otel.mfu_in_range(since = {since:Int64}, until = {until:Int64}, grain_s = {grain_s:UInt32})
WHERE is_window OR process NOT IN (
    SELECT process
    FROM otel.mfu_windowed(since = {since:Int64}, until = {until:Int64}, grain_s = {grain_s:UInt32})
);
