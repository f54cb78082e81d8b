-- Operators without a formula, by the mfu.run spans that overlap [since, until).
SELECT
    mfu_tenant_id AS tenant, mfu_workload_name AS workload,
    arraySort(groupUniqArrayArray(JSONExtract(SpanAttributes['mfu.count.uncounted'], 'Array(String)'))) AS operators
FROM otel.otel_traces
WHERE SpanName = 'mfu.run'
    AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
    AND toUnixTimestamp64Nano(Timestamp) + Duration >= {since:Int64}
    AND ({everyone:UInt8} OR mfu_tenant_id = {tenant:String})
GROUP BY tenant, workload
