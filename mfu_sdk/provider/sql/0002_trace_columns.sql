-- Typed columns, named from their attribute (mfu.model.flop -> mfu_model_flop; a test holds them against semconv).
-- An attribute that is absent or does not parse is NULL ('' for a string), never zero: unknown stays unknown.
-- Arrays stay in the map, where no sum needs them.
ALTER TABLE otel.otel_traces
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

-- What one span adds to the sums, all of it derived, nothing of it stored here. A window replaces its steps, which is
-- decided where rows are read; here each says what it would add.
--
-- A step weighs 1 / mfu.sample.ratio, the probability with which its span was kept. A step with a reason and no ratio
-- was kept besides the sample, which stands for it already: it weighs nothing, and so does a ratio that is no
-- probability. A step that was counted while it ran or that failed is not timed, and times and FLOPs are of timed
-- steps; tokens are of every step that did not fail. Model FLOPs under the `full` convention are brought to `exact` by
-- the attention attributes, and are unknown without them; an expectation scales with its numerator.
ALTER TABLE otel.otel_traces
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
