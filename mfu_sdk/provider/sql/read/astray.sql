-- Seconds of steps in [since, until) beyond the time that their tenant held their device, hour by hour: what an hour has
-- of steps, less the part of it that is in one of the tenant's `spans` of the device, less a minute for clocks that differ
-- and windows that end later. Only of tenants and devices (`keys`) that are given.
WITH held AS (
    SELECT each.1 AS tenant, each.2 AS device, groupArray((toInt64(each.3), toInt64(each.4))) AS spans
    FROM (
        SELECT arrayJoin(arrayZip({tenants:Array(String)}, {keys:Array(String)}, {since_s:Array(String)},
            {until_s:Array(String)})) AS each
    )
    GROUP BY tenant, device
)
SELECT tenant, host, device, sum(beyond_s) AS astray_s
FROM (
    SELECT
        tenant, host, device,
        greatest(0, seconds - 60
            - arraySum(s -> greatest(0, least(s.2, hour_s + 3600) - greatest(s.1, hour_s)), held.spans)) AS beyond_s
    FROM (
        SELECT
            tenant, host, device, toUnixTimestamp(toStartOfHour(ts, 'UTC')) AS hour_s,
            ifNull(sum(counted.step_time_s), 0) AS seconds
        FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
        WHERE (tenant, device) IN (SELECT tenant, device FROM held)
        GROUP BY tenant, host, device, hour_s
    ) AS did
    INNER JOIN held USING (tenant, device)
)
GROUP BY tenant, host, device
HAVING astray_s > 0
ORDER BY tenant, host, device
