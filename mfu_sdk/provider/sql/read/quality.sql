-- How each workload was counted: the least coverage, the denominators, and the conventions of its spans.
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload, ResourceAttributes['hw.name'] AS gpu_type,
    ifNull(mfu_dist_world_size, -1) AS world_size,
    min(mfu_count_coverage) AS coverage,
    arraySort(groupUniqArrayIf(mfu_peak_dtype, mfu_peak_dtype != '')) AS peak_dtypes,
    arraySort(groupUniqArrayIf(mfu_peak_source, mfu_peak_source != '')) AS peak_sources,
    arraySort(groupUniqArrayIf(mfu_convention, mfu_convention != '')) AS conventions
FROM otel.otel_traces
WHERE SpanName IN ('mfu.step', 'mfu.window')
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND ({everyone:UInt8} OR mfu_tenant_id = {tenant:String})
GROUP BY tenant, workload, gpu_type, world_size
