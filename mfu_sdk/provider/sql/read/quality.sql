-- How each workload was counted in the hours that [since, until) touches: the least coverage, the denominators, and the
-- conventions of its spans.
SELECT
    tenant, workload, gpu_type, world_size,
    min(counted.coverage) AS coverage,
    arraySort(groupUniqArrayIf(peak_dtype, peak_dtype != '')) AS peak_dtypes,
    arraySort(groupUniqArrayIf(peak_source, peak_source != '')) AS peak_sources,
    arraySort(groupUniqArrayIf(convention, convention != '')) AS conventions
FROM otel.mfu_counting_1h AS counted
WHERE ts >= toStartOfHour(fromUnixTimestamp64Nano({since:Int64}), 'UTC') AND ts < fromUnixTimestamp64Nano({until:Int64})
    AND ({everyone:UInt8} OR tenant = {tenant:String})
GROUP BY tenant, workload, gpu_type, world_size
