-- What tells causes apart: links, clocks, the device's own witness, and which slice and allocation a process has.
ALTER TABLE otel.otel_traces
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
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.expected.feasible'])
