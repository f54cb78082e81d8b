-- Seconds of steps in [since, until) by tenant in steps of five minutes, on those of the devices `keys` of which more than
-- one tenant tells, and only of hours in which that is so.
SELECT tenant, host, device, toUnixTimestamp(ts) AS start_s, ifNull(sum(counted.step_time_s), 0) AS seconds
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 300) AS counted
WHERE (device, toStartOfHour(ts, 'UTC')) IN (
    SELECT device, toStartOfHour(ts, 'UTC') AS hour
    FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600)
    WHERE device IN (SELECT arrayJoin({keys:Array(String)}))
    GROUP BY device, hour
    HAVING uniqExact(tenant) > 1
)
GROUP BY tenant, host, device, start_s
HAVING seconds > 0
ORDER BY device, start_s, tenant, host
