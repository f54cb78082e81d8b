-- What a calibration says of itself beside its rate: its interval, how it was taken, and what the rate hung on.
ALTER TABLE otel.otel_traces
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
