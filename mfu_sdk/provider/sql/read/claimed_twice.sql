-- Stretches of five minutes of [since, until) in which more than one tenant tells of one of the devices `keys`, with the
-- seconds of steps of each of them.
SELECT device, start_s, groupArray(tenant) AS tenants, groupArray(seconds) AS tenant_s
FROM (
    SELECT tenant, device, toUnixTimestamp(ts) AS start_s, sum(counted.step_time_s) AS seconds
    FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 300) AS counted
    WHERE device IN (SELECT arrayJoin({keys:Array(String)}))
    GROUP BY tenant, device, start_s
    HAVING seconds > 0
)
GROUP BY device, start_s
HAVING count() > 1
ORDER BY device, start_s
