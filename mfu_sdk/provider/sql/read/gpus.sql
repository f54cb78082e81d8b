-- What exporters told of each GPU (of each slice, where MIG cuts it) in [since, until), in sums over its five minutes.
--
-- A five minutes with a sample stands for all of itself that lies in the range: `x_s` are seconds in which x is known,
-- `x_weighted` is Σ mean × seconds; `held` sums count the part that somebody held, by the stretches that are given (of
-- one GPU, or of a host with a share). `untold` sums are over hours in which the GPU sent no steps of its own.
-- tensor × clock is multiplied by five minutes: within them the two are not correlated by anything known. An hour is
-- summed before it is held against the stretches, unless one begins or ends inside of it; of days that are over it lies
-- summed in mfu_gpus_1h.
WITH
    given AS (
        SELECT each.1 AS key, toInt64(each.2) AS since_ns, toInt64(each.3) AS until_ns, toFloat64(each.4) AS share
        FROM (
            SELECT
                arrayJoin(arrayZip({keys:Array(String)}, {since_ns:Array(String)}, {until_ns:Array(String)},
                    {shares:Array(String)})) AS each
        )
    ),
    edges AS (
        SELECT DISTINCT key, intDiv(edge_ns, 3600000000000) AS hour
        FROM (SELECT key, arrayJoin([since_ns, until_ns]) AS edge_ns FROM given)
        WHERE edge_ns % 3600000000000 != 0
    ),
    -- Hours of which five minutes are told apart: a stretch, or the range itself, begins or ends within.
    cut AS (
        SELECT toDateTime(hour * 3600, 'UTC') AS ts FROM edges
        UNION DISTINCT
        SELECT arrayJoin(arrayMap(at -> toDateTime(intDiv(at, 3600000000000) * 3600, 'UTC'),
            arrayFilter(at -> at % 3600000000000 != 0, [{since:Int64}, {until:Int64}])))
    ),
    -- Days that mfu_gpus_1h holds, and those of which there are five minutes still.
    made AS (
        SELECT DISTINCT toDate(ts) AS day FROM otel.mfu_gpus_1h
        WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 3600, 'UTC')
            AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
    ),
    whole AS (
        SELECT DISTINCT toDate(ts) AS day FROM otel.mfu_gpus_5m
        WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 300, 'UTC')
            AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
    ),
    stretches AS (
        SELECT key, day, groupArray((since_ns, until_ns, share)) AS spans
        FROM (
            SELECT
                *, arrayJoin(range(toUInt32(intDiv(since_ns, 86400000000000)),
                    toUInt32(intDiv(until_ns - 1, 86400000000000)) + 1)) AS day
            FROM given
        )
        GROUP BY key, day
    ),
    -- Hours in which a GPU, or a device without a UUID on a host, sent steps of its own.
    told AS (
        SELECT
            parent = '' AND NOT startsWith(device, 'GPU-') AS is_host,
            multiIf(is_host, toString(host), parent != '', parent, device) AS key,
            arrayJoin(range(
                intDiv(unix_s, 3600),
                intDiv(unix_s + toUInt32(least(greatest(ifNull(step_time_s, 1), 1), 86400)) - 1, 3600) + 1
            )) AS hour
        FROM (
            SELECT toUnixTimestamp(ts) AS unix_s, host, device, parent, sum(t.step_time_s) AS step_time_s
            FROM otel.mfu_sums_1h AS t
            WHERE ts >= toDateTime(intDiv({since:Int64}, 1000000000) - 90000, 'UTC')
                AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
            GROUP BY ts, host, device, parent, cityHash64(run_id, rank)
        )
    )
SELECT
    host, gpu, slice, profile, gpu_type, min(low) AS first_ns,
    sum(secs) AS seconds, sum(secs * held) AS held_s,
    sum(util_w) AS util_weighted, sum(util_t) AS util_s,
    sum(util_w * held) AS util_held_weighted, sum(util_t * held) AS util_held_s,
    sum(engine_w) AS engine_weighted, sum(engine_t) AS engine_s,
    sum(engine_w * held) AS engine_held_weighted, sum(engine_t * held) AS engine_held_s,
    sum(tensor_w) AS tensor_weighted, sum(tensor_t) AS tensor_s,
    sum(tensor_w * held) AS tensor_held_weighted, sum(tensor_t * held) AS tensor_held_s,
    sumIf(both_w, untold) AS untold_mhz_s, sumIf(both_t, untold) AS untold_s,
    sum(busy_w) AS busy_mhz_s, sum(busy_t) AS busy_s, sum(power_w) AS power_j, sum(power_t) AS power_s,
    sum(xids) AS xid_samples, sum(doubles) AS double_samples, sum(singles) AS single_samples
FROM (
    SELECT
        slots.* EXCEPT (high, day, hour),
        least(1, arraySum(s -> greatest(0, least(s.2, high) - greatest(s.1, low)) * s.3, named.spans) / (high - low))
            AS by_name,
        least(1, arraySum(s -> greatest(0, least(s.2, high) - greatest(s.1, low)) * s.3, hosts.spans) / (high - low))
            AS by_host,
        by_name + (1 - by_name) * by_host AS held,
        cityHash64(gpu, toUInt32(hour)) NOT IN (SELECT cityHash64(key, toUInt32(hour)) FROM told WHERE NOT is_host)
            AND cityHash64(host, toUInt32(hour)) NOT IN (SELECT cityHash64(key, toUInt32(hour)) FROM told WHERE is_host)
            AS untold
    FROM (
        SELECT
            host, gpu, slice, profile, gpu_type, hour, toUInt32(intDiv(hour, 24)) AS day,
            if((gpu, hour) IN (SELECT key, hour FROM edges) OR (concat('host:', host), hour) IN (SELECT key, hour FROM edges),
                start_ns, 0) AS part,
            min(greatest(start_ns, {since:Int64})) AS low, max(least(start_ns + 300000000000, {until:Int64})) AS high,
            sum(t) AS secs,
            sumIf(t * util / util_n, util_n > 0) AS util_w, sumIf(t, util_n > 0) AS util_t,
            sumIf(t * engine / engine_n, engine_n > 0) AS engine_w, sumIf(t, engine_n > 0) AS engine_t,
            sumIf(t * tensor / tensor_n, tensor_n > 0) AS tensor_w, sumIf(t, tensor_n > 0) AS tensor_t,
            sumIf(t * tensor / tensor_n * clock / clock_n, tensor_n > 0 AND clock_n > 0) AS both_w,
            sumIf(t, tensor_n > 0 AND clock_n > 0) AS both_t,
            sumIf(t * clock / clock_n, busy AND clock_n > 0) AS busy_w, sumIf(t, busy AND clock_n > 0) AS busy_t,
            sumIf(t * power / power_n, power_n > 0) AS power_w, sumIf(t, power_n > 0) AS power_t,
            sum(xid_n) AS xids, sum(double_n) AS doubles, sum(single_n) AS singles
        FROM (
            SELECT
                *, toInt64(toUnixTimestamp(ts)) * 1000000000 AS start_ns, intDiv(start_ns, 3600000000000) AS hour,
                (least(start_ns + 300000000000, {until:Int64}) - greatest(start_ns, {since:Int64})) / 1e9 AS t,
                if(util_n > 0, util / util_n, if(engine_n > 0, engine / engine_n, 0)) >= 0.9 AS busy
            FROM otel.mfu_gpus_5m FINAL
            PREWHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 300, 'UTC')
                AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
                AND (toDate(ts) NOT IN (SELECT day FROM made) OR (toStartOfHour(ts, 'UTC') IN (SELECT ts FROM cut) AND (
                    (gpu, intDiv(toUnixTimestamp(ts), 3600)) IN (SELECT key, toUInt32(hour) FROM edges)
                    OR (concat('host:', host), intDiv(toUnixTimestamp(ts), 3600)) IN (SELECT key, toUInt32(hour) FROM edges)
                    OR intDiv(toUnixTimestamp(ts), 3600) * 3600000000000 < {since:Int64}
                    OR (intDiv(toUnixTimestamp(ts), 3600) + 1) * 3600000000000 > {until:Int64})))
        )
        GROUP BY host, gpu, slice, profile, gpu_type, hour, part
        UNION ALL
        SELECT
            host, gpu, slice, profile, gpu_type, toInt64(intDiv(toUnixTimestamp(ts), 3600)) AS hour,
            toUInt32(intDiv(hour, 24)) AS day, 0 AS part,
            toInt64(toUnixTimestamp(first)) * 1000000000 AS low, toInt64(toUnixTimestamp(last)) * 1000000000 AS high,
            secs, util_w, util_s AS util_t, engine_w, engine_s AS engine_t, tensor_w, tensor_s AS tensor_t,
            both_w, both_s AS both_t, busy_w, busy_s AS busy_t, power_w, power_s AS power_t,
            xid_n AS xids, double_n AS doubles, single_n AS singles
        FROM otel.mfu_gpus_1h FINAL
        WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 3600, 'UTC')
            AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
            AND (toDate(ts) NOT IN (SELECT day FROM whole) OR ts NOT IN (SELECT ts FROM cut) OR NOT (
                (gpu, intDiv(toUnixTimestamp(ts), 3600)) IN (SELECT key, toUInt32(hour) FROM edges)
                OR (concat('host:', host), intDiv(toUnixTimestamp(ts), 3600)) IN (SELECT key, toUInt32(hour) FROM edges)
                OR intDiv(toUnixTimestamp(ts), 3600) * 3600000000000 < {since:Int64}
                OR (intDiv(toUnixTimestamp(ts), 3600) + 1) * 3600000000000 > {until:Int64}))
    ) AS slots
    LEFT JOIN stretches AS named ON named.key = slots.gpu AND named.day = slots.day
    LEFT JOIN stretches AS hosts ON hosts.key = concat('host:', slots.host) AND hosts.day = slots.day
)
GROUP BY host, gpu, slice, profile, gpu_type
ORDER BY host, gpu, slice, profile, gpu_type
SETTINGS do_not_merge_across_partitions_select_final = 1
