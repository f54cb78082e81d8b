-- What requests tell of their phases, tokens and outcome, and a server of its load.
ALTER TABLE otel.otel_traces
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
