-- Seconds in [since, until), in steps of five minutes, in which a workload's processes were heard of: by a window, within
-- a run that has ended, or by the metric that is 1 while a run lives.
SELECT tenant, workload, host, device, uniqExact(instance, bucket) * 300 AS heard_s
FROM (
    SELECT
        mfu_tenant_id AS tenant, mfu_workload_name AS workload,
        if(ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
            ResourceAttributes['host.name']) AS host,
        ResourceAttributes['hw.id'] AS device,
        concat(ResourceAttributes['service.instance.id'], '/', mfu_run_id, '/', toString(mfu_dist_rank)) AS instance,
        arrayJoin(range(
            intDiv(greatest(toUnixTimestamp64Nano(Timestamp), {since:Int64}), 300000000000),
            intDiv(least(toUnixTimestamp64Nano(Timestamp) + Duration, {until:Int64}) - 1, 300000000000) + 1)) AS bucket
    FROM otel.otel_traces
    WHERE SpanName IN ('mfu.run', 'mfu.window')
        AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
        AND toUnixTimestamp64Nano(Timestamp) + Duration > {since:Int64}
    UNION ALL
    SELECT
        ResourceAttributes['mfu.tenant.id'] AS tenant, ResourceAttributes['mfu.workload.name'] AS workload,
        if(ResourceAttributes['k8s.node.name'] != '', ResourceAttributes['k8s.node.name'],
            ResourceAttributes['host.name']) AS host,
        ResourceAttributes['hw.id'] AS device,
        concat(ResourceAttributes['service.instance.id'], '/', ResourceAttributes['mfu.run.id'], '/',
            ResourceAttributes['mfu.dist.rank']) AS instance,
        intDiv(toUnixTimestamp64Nano(TimeUnix), 300000000000) AS bucket
    FROM otel.otel_metrics_gauge
    WHERE MetricName = 'mfu.run.info'
        AND TimeUnix >= fromUnixTimestamp64Nano({since:Int64}) AND TimeUnix < fromUnixTimestamp64Nano({until:Int64})
)
GROUP BY tenant, workload, host, device
ORDER BY tenant, workload, host, device
