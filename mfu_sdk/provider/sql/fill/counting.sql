-- How the spans of the days from `first` to `last` were counted.
INSERT INTO otel.mfu_counting_1h
SELECT
    toStartOfHour(Timestamp, 'UTC') AS ts, mfu_tenant_id AS tenant, mfu_workload_name AS workload, hw_name AS gpu_type,
    ifNull(mfu_dist_world_size, -1) AS world_size, mfu_peak_dtype AS peak_dtype, mfu_peak_source AS peak_source,
    mfu_convention AS convention, count() AS spans, min(mfu_count_coverage) AS coverage
FROM otel.otel_traces
WHERE SpanName IN ('mfu.step', 'mfu.window') AND toDate(Timestamp, 'UTC') BETWEEN {first:Date} AND {last:Date}
GROUP BY ts, tenant, workload, gpu_type, world_size, peak_dtype, peak_source, convention
