-- Excursions of runs from their own baselines, and by which hashes a configuration is known.
ALTER TABLE otel.otel_traces
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
