-- Over how many ranks a run is parallel in which way, and where its time went between them.
ALTER TABLE otel.otel_traces
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
        MATERIALIZED toFloat64OrNull(SpanAttributes['mfu.step.host_time'])
