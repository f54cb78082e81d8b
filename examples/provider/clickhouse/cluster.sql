CREATE DATABASE IF NOT EXISTS otel ON CLUSTER 'fleet';

CREATE TABLE IF NOT EXISTS otel.otel_traces_local ON CLUSTER 'fleet' (
    Timestamp          DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    TraceId            String CODEC(ZSTD(1)),
    SpanId             String CODEC(ZSTD(1)),
    ParentSpanId       String CODEC(ZSTD(1)),
    TraceState         String CODEC(ZSTD(1)),
    SpanName           LowCardinality(String) CODEC(ZSTD(1)),
    SpanKind           LowCardinality(String) CODEC(ZSTD(1)),
    ServiceName        LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeName          String CODEC(ZSTD(1)),
    ScopeVersion       String CODEC(ZSTD(1)),
    SpanAttributes     Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Duration           UInt64 CODEC(T64, ZSTD(1)),
    StatusCode         LowCardinality(String) CODEC(ZSTD(1)),
    StatusMessage      String CODEC(ZSTD(1)),
    Events Nested (
        Timestamp  DateTime64(9),
        Name       LowCardinality(String),
        Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    Links Nested (
        TraceId    String,
        SpanId     String,
        TraceState String,
        Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(Timestamp)
PRIMARY KEY (ServiceName, SpanName, toDateTime(Timestamp))
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp), Timestamp)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS mfu_run_id String MATERIALIZED ResourceAttributes['mfu.run.id'],
    ADD COLUMN IF NOT EXISTS mfu_run_attempt Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.run.attempt']),
    ADD COLUMN IF NOT EXISTS mfu_workload_name LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.workload.name'],
    ADD COLUMN IF NOT EXISTS mfu_workload_family LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.workload.family'],
    ADD COLUMN IF NOT EXISTS mfu_dist_rank Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.rank']),
    ADD COLUMN IF NOT EXISTS mfu_dist_local_rank Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.local_rank']),
    ADD COLUMN IF NOT EXISTS mfu_dist_world_size Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.world_size']),
    ADD COLUMN IF NOT EXISTS mfu_tenant_id LowCardinality(String) MATERIALIZED ResourceAttributes['mfu.tenant.id'],
    ADD COLUMN IF NOT EXISTS mfu_step_index Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.step.index']),
    ADD COLUMN IF NOT EXISTS mfu_phase LowCardinality(String) MATERIALIZED SpanAttributes['mfu.phase'],
    ADD COLUMN IF NOT EXISTS mfu_utilization Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.utilization']),
    ADD COLUMN IF NOT EXISTS mfu_hardware_utilization Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.hardware.utilization']),
    ADD COLUMN IF NOT EXISTS mfu_achievable_utilization Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.achievable.utilization']),
    ADD COLUMN IF NOT EXISTS mfu_dtype_utilization Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.dtype.utilization']),
    ADD COLUMN IF NOT EXISTS mfu_expected Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected']),
    ADD COLUMN IF NOT EXISTS mfu_model_flop Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.model.flop']),
    ADD COLUMN IF NOT EXISTS mfu_hardware_flop Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.hardware.flop']),
    ADD COLUMN IF NOT EXISTS mfu_available_flop Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.available.flop']),
    ADD COLUMN IF NOT EXISTS mfu_expected_flop Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected.flop']),
    ADD COLUMN IF NOT EXISTS mfu_expected_available_flop Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected.available.flop']),
    ADD COLUMN IF NOT EXISTS mfu_attention_flop_exact Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.attention.flop.exact']),
    ADD COLUMN IF NOT EXISTS mfu_attention_flop_full Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.attention.flop.full']),
    ADD COLUMN IF NOT EXISTS mfu_peak_flop_rate Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.peak.flop_rate']),
    ADD COLUMN IF NOT EXISTS mfu_peak_source LowCardinality(String) MATERIALIZED SpanAttributes['mfu.peak.source'],
    ADD COLUMN IF NOT EXISTS mfu_peak_dtype LowCardinality(String) MATERIALIZED SpanAttributes['mfu.peak.dtype'],
    ADD COLUMN IF NOT EXISTS mfu_peak_memory_rate Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.peak.memory_rate']),
    ADD COLUMN IF NOT EXISTS mfu_calibration_id LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.calibration.id'],
    ADD COLUMN IF NOT EXISTS mfu_count_source LowCardinality(String) MATERIALIZED SpanAttributes['mfu.count.source'],
    ADD COLUMN IF NOT EXISTS mfu_count_coverage Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.count.coverage']),
    ADD COLUMN IF NOT EXISTS mfu_convention LowCardinality(String) MATERIALIZED SpanAttributes['mfu.convention'],
    ADD COLUMN IF NOT EXISTS mfu_step_data_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.data_time']),
    ADD COLUMN IF NOT EXISTS mfu_step_device_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.device_time']),
    ADD COLUMN IF NOT EXISTS mfu_step_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.time']),
    ADD COLUMN IF NOT EXISTS mfu_token_count Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.token.count']),
    ADD COLUMN IF NOT EXISTS mfu_sample_count Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.sample.count']),
    ADD COLUMN IF NOT EXISTS mfu_request_count Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.request.count']),
    ADD COLUMN IF NOT EXISTS mfu_request_failed Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.request.failed']),
    ADD COLUMN IF NOT EXISTS mfu_request_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.request.time']),
    ADD COLUMN IF NOT EXISTS mfu_sample_reason LowCardinality(String) MATERIALIZED SpanAttributes['mfu.sample.reason'],
    ADD COLUMN IF NOT EXISTS mfu_sample_ratio Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.sample.ratio']),
    ADD COLUMN IF NOT EXISTS mfu_batch_running Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.batch.running']),
    ADD COLUMN IF NOT EXISTS mfu_arithmetic_intensity Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.arithmetic_intensity']),
    ADD COLUMN IF NOT EXISTS mfu_inference_model_calls Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.inference.model_calls']),
    ADD COLUMN IF NOT EXISTS mfu_window_step_first Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.window.step.first']),
    ADD COLUMN IF NOT EXISTS mfu_window_step_count Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.window.step.count']),
    ADD COLUMN IF NOT EXISTS mfu_window_step_timed Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.window.step.timed']),
    ADD COLUMN IF NOT EXISTS mfu_window_step_unknown Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.window.step.unknown']),
    ADD COLUMN IF NOT EXISTS mfu_run_step_count Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.run.step.count']),
    ADD COLUMN IF NOT EXISTS mfu_run_overhead Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.run.overhead']);

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS sum_is_window UInt8 ALIAS SpanName = 'mfu.window',
    ADD COLUMN IF NOT EXISTS sum_weight Float64 ALIAS
        multiIf(
            sum_is_window OR (isNull(mfu_sample_ratio) AND mfu_sample_reason = ''), 1,
            mfu_sample_ratio > 0 AND mfu_sample_ratio <= 1, 1 / assumeNotNull(mfu_sample_ratio),
            0),
    ADD COLUMN IF NOT EXISTS sum_is_timed UInt8 ALIAS
        sum_is_window OR (mfu_count_source != 'measured' AND SpanAttributes['error.type'] = ''),
    ADD COLUMN IF NOT EXISTS sum_exact_flop Nullable(Float64) ALIAS
        if(mfu_convention = 'full',
            mfu_model_flop - mfu_attention_flop_full + mfu_attention_flop_exact,
            mfu_model_flop),
    ADD COLUMN IF NOT EXISTS sum_is_known UInt8 ALIAS
        ifNull(sum_is_timed
            AND sum_exact_flop >= 0 AND isFinite(sum_exact_flop)
            AND mfu_available_flop > 0 AND isFinite(mfu_available_flop), 0),
    ADD COLUMN IF NOT EXISTS sum_expected_known UInt8 ALIAS
        ifNull(if(sum_is_window,
            mfu_expected_flop >= 0 AND isFinite(mfu_expected_flop)
                AND mfu_expected_available_flop > 0 AND isFinite(mfu_expected_available_flop),
            sum_is_known AND mfu_expected >= 0 AND isFinite(mfu_expected))
            AND (mfu_convention != 'full' OR (sum_exact_flop >= 0 AND mfu_model_flop > 0)), 0),
    ADD COLUMN IF NOT EXISTS sum_steps Nullable(Float64) ALIAS if(sum_is_window, mfu_window_step_count, sum_weight),
    ADD COLUMN IF NOT EXISTS sum_timed_steps Nullable(Float64) ALIAS
        if(sum_is_window, mfu_window_step_timed, sum_weight * sum_is_timed),
    ADD COLUMN IF NOT EXISTS sum_unknown_steps Nullable(Float64) ALIAS
        multiIf(NOT sum_is_known, sum_timed_steps, sum_is_window, mfu_window_step_unknown, 0),
    ADD COLUMN IF NOT EXISTS sum_model_flop Nullable(Float64) ALIAS if(sum_is_known, sum_exact_flop * sum_weight, NULL),
    ADD COLUMN IF NOT EXISTS sum_available_flop Nullable(Float64) ALIAS
        if(sum_is_known, mfu_available_flop * sum_weight, NULL),
    ADD COLUMN IF NOT EXISTS sum_expected_flop Nullable(Float64) ALIAS
        if(sum_expected_known,
            if(sum_is_window, mfu_expected_flop, mfu_expected * mfu_available_flop * sum_weight)
                * if(mfu_convention = 'full', sum_exact_flop / mfu_model_flop, 1),
            NULL),
    ADD COLUMN IF NOT EXISTS sum_expected_available_flop Nullable(Float64) ALIAS
        if(sum_expected_known, if(sum_is_window, mfu_expected_available_flop, mfu_available_flop * sum_weight), NULL),
    ADD COLUMN IF NOT EXISTS sum_step_time_s Nullable(Float64) ALIAS
        if(sum_is_window, mfu_step_time, Duration / 1e9 * sum_weight * sum_is_timed),
    ADD COLUMN IF NOT EXISTS sum_tokens Nullable(Float64) ALIAS
        mfu_token_count * sum_weight * (SpanAttributes['error.type'] = ''),
    ADD COLUMN IF NOT EXISTS sum_batch_time_s Nullable(Float64) ALIAS
        if(isFinite(mfu_batch_running), sum_step_time_s, NULL),
    ADD COLUMN IF NOT EXISTS sum_batch_s Nullable(Float64) ALIAS mfu_batch_running * sum_batch_time_s;

CREATE TABLE IF NOT EXISTS otel.otel_metrics_gauge_local ON CLUSTER 'fleet' (
    ResourceAttributes    Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl     String CODEC(ZSTD(1)),
    ScopeName             String CODEC(ZSTD(1)),
    ScopeVersion          String CODEC(ZSTD(1)),
    ScopeAttributes       Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl        String CODEC(ZSTD(1)),
    ServiceName           LowCardinality(String) CODEC(ZSTD(1)),
    MetricName            LowCardinality(String) CODEC(ZSTD(1)),
    MetricDescription     String CODEC(ZSTD(1)),
    MetricUnit            String CODEC(ZSTD(1)),
    Attributes            Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix         DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix              DateTime64(9) CODEC(Delta, ZSTD(1)),
    Value                 Float64 CODEC(ZSTD(1)),
    Flags                 UInt32 CODEC(ZSTD(1)),
    Exemplars Nested (
        FilteredAttributes Map(LowCardinality(String), String),
        TimeUnix           DateTime64(9),
        Value              Float64,
        SpanId             String,
        TraceId            String
    ) CODEC(ZSTD(1)),
    INDEX idx_time_minmax TimeUnix TYPE minmax GRANULARITY 1
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, cityHash64(Attributes), TimeUnix)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.otel_metrics_sum_local ON CLUSTER 'fleet' (
    ResourceAttributes    Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl     String CODEC(ZSTD(1)),
    ScopeName             String CODEC(ZSTD(1)),
    ScopeVersion          String CODEC(ZSTD(1)),
    ScopeAttributes       Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl        String CODEC(ZSTD(1)),
    ServiceName           LowCardinality(String) CODEC(ZSTD(1)),
    MetricName            LowCardinality(String) CODEC(ZSTD(1)),
    MetricDescription     String CODEC(ZSTD(1)),
    MetricUnit            String CODEC(ZSTD(1)),
    Attributes            Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix         DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix              DateTime64(9) CODEC(Delta, ZSTD(1)),
    Value                 Float64 CODEC(ZSTD(1)),
    Flags                 UInt32 CODEC(ZSTD(1)),
    Exemplars Nested (
        FilteredAttributes Map(LowCardinality(String), String),
        TimeUnix           DateTime64(9),
        Value              Float64,
        SpanId             String,
        TraceId            String
    ) CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    IsMonotonic            Boolean CODEC(Delta, ZSTD(1)),
    INDEX idx_time_minmax TimeUnix TYPE minmax GRANULARITY 1
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, cityHash64(Attributes), TimeUnix)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.otel_metrics_histogram_local ON CLUSTER 'fleet' (
    ResourceAttributes    Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl     String CODEC(ZSTD(1)),
    ScopeName             String CODEC(ZSTD(1)),
    ScopeVersion          String CODEC(ZSTD(1)),
    ScopeAttributes       Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl        String CODEC(ZSTD(1)),
    ServiceName           LowCardinality(String) CODEC(ZSTD(1)),
    MetricName            LowCardinality(String) CODEC(ZSTD(1)),
    MetricDescription     String CODEC(ZSTD(1)),
    MetricUnit            String CODEC(ZSTD(1)),
    Attributes            Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix         DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix              DateTime64(9) CODEC(Delta, ZSTD(1)),
    Count                 UInt64 CODEC(Delta, ZSTD(1)),
    Sum                   Float64 CODEC(ZSTD(1)),
    BucketCounts          Array(UInt64) CODEC(ZSTD(1)),
    ExplicitBounds        Array(Float64) CODEC(ZSTD(1)),
    Exemplars Nested (
        FilteredAttributes Map(LowCardinality(String), String),
        TimeUnix           DateTime64(9),
        Value              Float64,
        SpanId             String,
        TraceId            String
    ) CODEC(ZSTD(1)),
    Flags                  UInt32 CODEC(ZSTD(1)),
    Min                    Float64 CODEC(ZSTD(1)),
    Max                    Float64 CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    INDEX idx_time_minmax TimeUnix TYPE minmax GRANULARITY 1
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, cityHash64(Attributes), TimeUnix)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS mfu_peak_flop_rate_low Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.peak.flop_rate.low']),
    ADD COLUMN IF NOT EXISTS mfu_peak_flop_rate_high Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.peak.flop_rate.high']),
    ADD COLUMN IF NOT EXISTS mfu_calibration_tier LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.calibration.tier'],
    ADD COLUMN IF NOT EXISTS mfu_calibration_clock Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.calibration.clock']),
    ADD COLUMN IF NOT EXISTS mfu_calibration_efficiency Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.calibration.efficiency']),
    ADD COLUMN IF NOT EXISTS mfu_calibration_degraded LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.calibration.degraded'];

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS mfu_request_outcome LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.request.outcome'],
    ADD COLUMN IF NOT EXISTS mfu_request_running Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.request.running']),
    ADD COLUMN IF NOT EXISTS mfu_batch_feasible Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.batch.feasible']),
    ADD COLUMN IF NOT EXISTS mfu_queue_waiting Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.queue.waiting']),
    ADD COLUMN IF NOT EXISTS mfu_kv_cache_free_ratio Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.kv_cache.free_ratio']),
    ADD COLUMN IF NOT EXISTS mfu_latency_target Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.latency.target']),
    ADD COLUMN IF NOT EXISTS mfu_token_input Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.token.input']),
    ADD COLUMN IF NOT EXISTS mfu_token_output Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.token.output']),
    ADD COLUMN IF NOT EXISTS mfu_inference_time_to_first_token Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.inference.time_to_first_token']),
    ADD COLUMN IF NOT EXISTS mfu_inference_time_per_output_token Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.inference.time_per_output_token']),
    ADD COLUMN IF NOT EXISTS mfu_inference_chunks Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.inference.chunks']);

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS mfu_config_intent LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.config.intent'],
    ADD COLUMN IF NOT EXISTS mfu_config_fingerprint LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.config.fingerprint'],
    ADD COLUMN IF NOT EXISTS mfu_drift_kind LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.drift.kind'],
    ADD COLUMN IF NOT EXISTS mfu_drift_measure LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.drift.measure'],
    ADD COLUMN IF NOT EXISTS mfu_drift_change Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.drift.change']),
    ADD COLUMN IF NOT EXISTS mfu_drift_score Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.drift.score']),
    ADD COLUMN IF NOT EXISTS mfu_drift_threshold Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.drift.threshold']),
    ADD COLUMN IF NOT EXISTS mfu_drift_baseline Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.drift.baseline']),
    ADD COLUMN IF NOT EXISTS mfu_drift_current Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.drift.current']),
    ADD COLUMN IF NOT EXISTS mfu_drift_onset_step Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.drift.onset_step']),
    ADD COLUMN IF NOT EXISTS mfu_drift_found_step Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.drift.found_step']),
    ADD COLUMN IF NOT EXISTS mfu_drift_recovered_step Nullable(Int64)
        MATERIALIZED toInt64OrNull(SpanAttributes['mfu.drift.recovered_step']),
    ADD COLUMN IF NOT EXISTS mfu_drift_detector LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.drift.detector'],
    ADD COLUMN IF NOT EXISTS mfu_drift_cause LowCardinality(String)
        MATERIALIZED SpanAttributes['mfu.drift.cause'];

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS mfu_dist_dp Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.dp']),
    ADD COLUMN IF NOT EXISTS mfu_dist_tp Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.tp']),
    ADD COLUMN IF NOT EXISTS mfu_dist_pp Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.pp']),
    ADD COLUMN IF NOT EXISTS mfu_dist_cp Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.cp']),
    ADD COLUMN IF NOT EXISTS mfu_dist_ep Nullable(Int64)
        MATERIALIZED toInt64OrNull(ResourceAttributes['mfu.dist.ep']),
    ADD COLUMN IF NOT EXISTS mfu_step_comm_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.comm_time']),
    ADD COLUMN IF NOT EXISTS mfu_step_skew_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.skew_time']),
    ADD COLUMN IF NOT EXISTS mfu_step_host_time Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.host_time']);

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS mfu_model_class LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.model.class'],
    ADD COLUMN IF NOT EXISTS mfu_allocation_id LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.allocation.id'],
    ADD COLUMN IF NOT EXISTS mfu_mig_uuid LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.mig.uuid'],
    ADD COLUMN IF NOT EXISTS mfu_mig_profile LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.mig.profile'],
    ADD COLUMN IF NOT EXISTS mfu_topology_link LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.topology.link'],
    ADD COLUMN IF NOT EXISTS mfu_topology_link_best LowCardinality(String)
        MATERIALIZED ResourceAttributes['mfu.topology.link.best'],
    ADD COLUMN IF NOT EXISTS mfu_comm_bytes Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.comm.bytes']),
    ADD COLUMN IF NOT EXISTS mfu_comm_bus_rate Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.comm.bus_rate']),
    ADD COLUMN IF NOT EXISTS mfu_comm_bus_rate_peak Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.comm.bus_rate.peak']),
    ADD COLUMN IF NOT EXISTS mfu_comm_ideal_ratio Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.comm.ideal_ratio']),
    ADD COLUMN IF NOT EXISTS mfu_clock_ratio Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.clock.ratio']),
    ADD COLUMN IF NOT EXISTS mfu_witness_utilization Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.witness.utilization']),
    ADD COLUMN IF NOT EXISTS mfu_expected_feasible Nullable(Float64)
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected.feasible']);

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
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

CREATE TABLE IF NOT EXISTS otel.mfu_sums_5m_local ON CLUSTER 'fleet' (
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
) ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(ts)
PRIMARY KEY (tenant, workload, ts)
ORDER BY (
    tenant, workload, ts, run_id, attempt, rank, world_size, family, host, device, gpu_type, phase, intent, fingerprint,
    link, link_best, mig_profile, parent, allocation_id, is_window
)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_sums_1h_local ON CLUSTER 'fleet' (
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
) ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(ts)
PRIMARY KEY (tenant, workload, ts)
ORDER BY (
    tenant, workload, ts, run_id, attempt, rank, world_size, family, host, device, gpu_type, phase, intent, fingerprint,
    link, link_best, mig_profile, parent, allocation_id, is_window
)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_counting_1h_local ON CLUSTER 'fleet' (
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
) ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(ts)
ORDER BY (tenant, workload, ts, gpu_type, world_size, peak_dtype, peak_source, convention)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_counting_1h_mv ON CLUSTER 'fleet' TO otel.mfu_counting_1h_local AS
SELECT
    toStartOfHour(Timestamp, 'UTC') AS ts, mfu_tenant_id AS tenant, mfu_workload_name AS workload, hw_name AS gpu_type,
    ifNull(mfu_dist_world_size, -1) AS world_size, mfu_peak_dtype AS peak_dtype, mfu_peak_source AS peak_source,
    mfu_convention AS convention, count() AS spans, min(mfu_count_coverage) AS coverage
FROM otel.otel_traces_local
WHERE SpanName IN ('mfu.step', 'mfu.window')
GROUP BY ts, tenant, workload, gpu_type, world_size, peak_dtype, peak_source, convention;

CREATE TABLE IF NOT EXISTS otel.mfu_findings ON CLUSTER 'fleet' (
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
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', judged_unix_ns)
PARTITION BY toYYYYMM(day)
ORDER BY (day, tenant, series)
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_judged_days ON CLUSTER 'fleet' (
    day            Date CODEC(Delta, ZSTD(1)),
    judged_unix_ns Int64 CODEC(ZSTD(1))
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', judged_unix_ns)
ORDER BY day
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_finding_states ON CLUSTER 'fleet' (
    series     String CODEC(ZSTD(1)),
    day        Date CODEC(Delta, ZSTD(1)),
    state      LowCardinality(String) CODEC(ZSTD(1)),
    by         String CODEC(ZSTD(1)),
    note       String CODEC(ZSTD(1)),
    at_unix_ns Int64 CODEC(ZSTD(1))
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
ORDER BY (series, at_unix_ns)
SETTINGS index_granularity = 8192, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_gpu_points ON CLUSTER 'fleet' (
    at       DateTime64(9),
    host     String,
    gpu      String,
    slice    String,
    profile  String,
    gpu_type String,
    metric   String,
    value    Float64
) ENGINE = Null;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpu_points_gauge_mv ON CLUSTER 'fleet' TO otel.mfu_gpu_points AS
SELECT
    TimeUnix AS at,
    multiIf(Attributes['Hostname'] != '', Attributes['Hostname'],
        ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
        ResourceAttributes['host.name']) AS host,
    if(Attributes['UUID'] != '', Attributes['UUID'], concat(host, '/', Attributes['gpu'])) AS gpu,
    Attributes['GPU_I_ID'] AS slice, Attributes['GPU_I_PROFILE'] AS profile, Attributes['modelName'] AS gpu_type,
    substring(MetricName, 6) AS metric, Value AS value
FROM otel.otel_metrics_gauge_local
WHERE startsWith(MetricName, 'DCGM_FI_') AND startsWith(ResourceAttributes['mfu.tenant.id'], 'provider:');

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpu_points_sum_mv ON CLUSTER 'fleet' TO otel.mfu_gpu_points AS
SELECT
    TimeUnix AS at,
    multiIf(Attributes['Hostname'] != '', Attributes['Hostname'],
        ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
        ResourceAttributes['host.name']) AS host,
    if(Attributes['UUID'] != '', Attributes['UUID'], concat(host, '/', Attributes['gpu'])) AS gpu,
    Attributes['GPU_I_ID'] AS slice, Attributes['GPU_I_PROFILE'] AS profile, Attributes['modelName'] AS gpu_type,
    substring(MetricName, 6) AS metric, Value AS value
FROM otel.otel_metrics_sum_local
WHERE startsWith(MetricName, 'DCGM_FI_') AND startsWith(ResourceAttributes['mfu.tenant.id'], 'provider:')
    AND AggregationTemporality = 2;

CREATE TABLE IF NOT EXISTS otel.mfu_gpus_5m_local ON CLUSTER 'fleet' (
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
) ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(ts)
ORDER BY (host, gpu, slice, profile, gpu_type, ts)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.mfu_gpu_errors_5m_local ON CLUSTER 'fleet' (
    ts     DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host   LowCardinality(String) CODEC(ZSTD(1)),
    gpu    String CODEC(ZSTD(1)),
    metric LowCardinality(String) CODEC(ZSTD(1)),
    value  UInt64 CODEC(ZSTD(1)),
    first  SimpleAggregateFunction(min, DateTime64(9)) CODEC(ZSTD(1)),
    last   SimpleAggregateFunction(max, DateTime64(9)) CODEC(ZSTD(1))
) ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(ts)
ORDER BY (host, gpu, metric, ts, value)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpu_errors_5m_mv ON CLUSTER 'fleet' TO otel.mfu_gpu_errors_5m_local AS
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

CREATE TABLE IF NOT EXISTS otel.otel_logs_local ON CLUSTER 'fleet' (
    Timestamp          DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    TimestampTime      DateTime DEFAULT toDateTime(Timestamp),
    TraceId            String CODEC(ZSTD(1)),
    SpanId             String CODEC(ZSTD(1)),
    TraceFlags         UInt8,
    SeverityText       LowCardinality(String) CODEC(ZSTD(1)),
    SeverityNumber     UInt8,
    ServiceName        LowCardinality(String) CODEC(ZSTD(1)),
    Body               String CODEC(ZSTD(1)),
    ResourceSchemaUrl  LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeSchemaUrl     LowCardinality(String) CODEC(ZSTD(1)),
    ScopeName          String CODEC(ZSTD(1)),
    ScopeVersion       LowCardinality(String) CODEC(ZSTD(1)),
    ScopeAttributes    Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    LogAttributes      Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    EventName          String CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(TimestampTime)
PRIMARY KEY (ServiceName, TimestampTime)
ORDER BY (ServiceName, TimestampTime, Timestamp)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_gauge_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_sum_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_histogram_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_logs_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_findings ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_judged_days ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_finding_states ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_sums_5m_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_sums_1h_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_counting_1h_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_gpus_5m_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_gpu_errors_5m_local ON CLUSTER 'fleet' MODIFY SETTING non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS otel.mfu_gpus_1h_local ON CLUSTER 'fleet' (
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
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', samples)
PARTITION BY toDate(ts)
ORDER BY (host, gpu, slice, profile, gpu_type, ts)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1;

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet'
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

ALTER TABLE otel.mfu_sums_5m_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS expected_low_flop      SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_high_flop     SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_interval_flop SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_first             SimpleAggregateFunction(min, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_last              SimpleAggregateFunction(max, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS process UInt64 DEFAULT cityHash64(tenant, run_id, attempt, rank) CODEC(ZSTD(1));

ALTER TABLE otel.mfu_sums_1h_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS expected_low_flop      SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_high_flop     SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS expected_interval_flop SimpleAggregateFunction(sum, Nullable(Float64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_first             SimpleAggregateFunction(min, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS step_last              SimpleAggregateFunction(max, Nullable(Int64)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS process UInt64 DEFAULT cityHash64(tenant, run_id, attempt, rank) CODEC(ZSTD(1));

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_sums_5m_mv ON CLUSTER 'fleet' TO otel.mfu_sums_5m_local AS
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
    FROM otel.otel_traces_local
    WHERE SpanName IN ('mfu.step', 'mfu.window')
);

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_sums_1h_mv ON CLUSTER 'fleet' TO otel.mfu_sums_1h_local AS
SELECT toStartOfHour(ts, 'UTC') AS ts, * EXCEPT (ts) FROM otel.mfu_sums_5m_local;

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet' MODIFY SETTING min_bytes_for_wide_part = 104857600, merge_selector_base = 10;

ALTER TABLE otel.mfu_gpus_5m_local ON CLUSTER 'fleet'
    ADD COLUMN IF NOT EXISTS pcie_tx_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS pcie_tx SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS pcie_rx_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS pcie_rx SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1));

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpus_5m_mv ON CLUSTER 'fleet' TO otel.mfu_gpus_5m_local AS
SELECT
    toDateTime(toStartOfFiveMinutes(at, 'UTC'), 'UTC') AS ts, host, gpu, slice, profile, gpu_type,
    countIf(is_tensor) AS tensor_n, sumIf(value, is_tensor) AS tensor,
    countIf(is_engine) AS engine_n, sumIf(value, is_engine) AS engine,
    countIf(is_util) AS util_n, sumIf(value / 100, is_util) AS util,
    countIf(is_clock) AS clock_n, sumIf(value, is_clock) AS clock,
    countIf(is_power) AS power_n, sumIf(value, is_power) AS power,
    countIf(is_pcie_tx) AS pcie_tx_n, sumIf(value, is_pcie_tx) AS pcie_tx,
    countIf(is_pcie_rx) AS pcie_rx_n, sumIf(value, is_pcie_rx) AS pcie_rx,
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
        metric = 'FI_DEV_POWER_USAGE' AND value >= 0 AND value < 100000 AS is_power,
        metric = 'FI_PROF_PCIE_TX_BYTES' AND value >= 0 AND value < 1e12 AS is_pcie_tx,
        metric = 'FI_PROF_PCIE_RX_BYTES' AND value >= 0 AND value < 1e12 AS is_pcie_rx
    FROM otel.mfu_gpu_points
)
GROUP BY ts, host, gpu, slice, profile, gpu_type
HAVING tensor_n + engine_n + util_n + clock_n + power_n + pcie_tx_n + pcie_rx_n + xid_n + double_n
    + single_n > 0;

CREATE OR REPLACE TABLE otel.otel_traces ON CLUSTER 'fleet' AS otel.otel_traces_local
ENGINE = Distributed('fleet', 'otel', 'otel_traces_local', cityHash64(TraceId));

CREATE OR REPLACE TABLE otel.otel_metrics_gauge ON CLUSTER 'fleet' AS otel.otel_metrics_gauge_local
ENGINE = Distributed('fleet', 'otel', 'otel_metrics_gauge_local', cityHash64(Attributes));

CREATE OR REPLACE TABLE otel.otel_metrics_sum ON CLUSTER 'fleet' AS otel.otel_metrics_sum_local
ENGINE = Distributed('fleet', 'otel', 'otel_metrics_sum_local', cityHash64(Attributes));

CREATE OR REPLACE TABLE otel.otel_metrics_histogram ON CLUSTER 'fleet' AS otel.otel_metrics_histogram_local
ENGINE = Distributed('fleet', 'otel', 'otel_metrics_histogram_local', cityHash64(Attributes));

CREATE OR REPLACE TABLE otel.mfu_sums_5m ON CLUSTER 'fleet' AS otel.mfu_sums_5m_local
ENGINE = Distributed('fleet', 'otel', 'mfu_sums_5m_local', cityHash64(workload));

CREATE OR REPLACE TABLE otel.mfu_sums_1h ON CLUSTER 'fleet' AS otel.mfu_sums_1h_local
ENGINE = Distributed('fleet', 'otel', 'mfu_sums_1h_local', cityHash64(workload));

CREATE OR REPLACE TABLE otel.mfu_counting_1h ON CLUSTER 'fleet' AS otel.mfu_counting_1h_local
ENGINE = Distributed('fleet', 'otel', 'mfu_counting_1h_local', cityHash64(workload));

CREATE OR REPLACE TABLE otel.mfu_gpus_5m ON CLUSTER 'fleet' AS otel.mfu_gpus_5m_local
ENGINE = Distributed('fleet', 'otel', 'mfu_gpus_5m_local', cityHash64(gpu));

CREATE OR REPLACE TABLE otel.mfu_gpu_errors_5m ON CLUSTER 'fleet' AS otel.mfu_gpu_errors_5m_local
ENGINE = Distributed('fleet', 'otel', 'mfu_gpu_errors_5m_local', cityHash64(gpu));

CREATE OR REPLACE TABLE otel.otel_logs ON CLUSTER 'fleet' AS otel.otel_logs_local
ENGINE = Distributed('fleet', 'otel', 'otel_logs_local', cityHash64(TraceId));

CREATE OR REPLACE TABLE otel.mfu_gpus_1h ON CLUSTER 'fleet' AS otel.mfu_gpus_1h_local
ENGINE = Distributed('fleet', 'otel', 'mfu_gpus_1h_local', cityHash64(gpu));

CREATE OR REPLACE VIEW otel.mfu_span_sums ON CLUSTER 'fleet' AS
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

CREATE OR REPLACE VIEW otel.mfu_span_sums_local ON CLUSTER 'fleet' AS
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
    FROM otel.otel_traces_local
    WHERE SpanName IN ('mfu.step', 'mfu.window')
);

CREATE OR REPLACE VIEW otel.mfu_in_range ON CLUSTER 'fleet' AS
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

CREATE OR REPLACE VIEW otel.mfu_windowed ON CLUSTER 'fleet' AS
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

CREATE OR REPLACE VIEW otel.mfu_counted ON CLUSTER 'fleet' AS
SELECT * FROM otel.mfu_in_range(since = {since:Int64}, until = {until:Int64}, grain_s = {grain_s:UInt32})
WHERE is_window OR process NOT IN (
    SELECT process
    FROM otel.mfu_windowed(since = {since:Int64}, until = {until:Int64}, grain_s = {grain_s:UInt32})
);

ALTER TABLE otel.otel_traces_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(Timestamp) + toIntervalDay(14);

ALTER TABLE otel.otel_metrics_gauge_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(TimeUnix) + toIntervalDay(14);

ALTER TABLE otel.otel_metrics_sum_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(TimeUnix) + toIntervalDay(14);

ALTER TABLE otel.otel_metrics_histogram_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(TimeUnix) + toIntervalDay(14);

ALTER TABLE otel.otel_logs_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(Timestamp) + toIntervalDay(14);

ALTER TABLE otel.mfu_sums_5m_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(ts) + toIntervalDay(90);

ALTER TABLE otel.mfu_sums_1h_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(ts) + toIntervalDay(1095);

ALTER TABLE otel.mfu_counting_1h_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(ts) + toIntervalDay(1095);

ALTER TABLE otel.mfu_gpus_5m_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(ts) + toIntervalDay(90);

ALTER TABLE otel.mfu_gpus_1h_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(ts) + toIntervalDay(1095);

ALTER TABLE otel.mfu_gpu_errors_5m_local ON CLUSTER 'fleet' MODIFY TTL toDateTime(ts) + toIntervalDay(90);
