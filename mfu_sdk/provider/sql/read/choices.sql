-- Which tenants and GPU types were seen in [since, until), to the five minutes: what a filter can be set to.
SELECT DISTINCT tenant, gpu_type
FROM otel.mfu_sums_5m
WHERE ts >= toStartOfInterval(fromUnixTimestamp64Nano({since:Int64}), INTERVAL 300 SECOND, 'UTC')
    AND ts < fromUnixTimestamp64Nano({until:Int64})
    AND ({everyone:UInt8} OR tenant = {tenant:String})
ORDER BY tenant, gpu_type
LIMIT 2000
