-- What exporters told of each GPU (of each slice, where MIG cuts it) in [since, until), in sums over its five minutes.
--
-- A five minutes with a sample stands for all of itself that lies in the range: `x_s` are seconds in which x is known,
-- `x_weighted` is Σ mean × seconds; `held` sums count the part that somebody held, by the stretches that are given (of
-- one GPU, or of a host with a share). `untold` sums are over hours in which the GPU sent no steps of its own.
-- tensor × clock is multiplied by five minutes: within them the two are not correlated by anything known. An hour is
-- summed before it is held against the stretches, unless one begins or ends inside of it.
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
    told AS (
        SELECT DISTINCT
            multiIf(parent != '', parent, startsWith(device, 'GPU-'), device, concat('host:', host)) AS key,
            arrayJoin(range(
                intDiv(toUnixTimestamp(ts), 3600),
                intDiv(toUnixTimestamp(ts) + toUInt32(least(greatest(ifNull(step_time_s, 1), 1), 86400)) - 1, 3600) + 1
            )) AS hour
        FROM (
            SELECT ts, host, device, parent, run_id, rank, sum(t.step_time_s) AS step_time_s
            FROM otel.mfu_sums_1h AS t
            WHERE ts >= toDateTime(intDiv({since:Int64}, 1000000000) - 90000, 'UTC')
                AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
            GROUP BY ts, host, device, parent, run_id, rank
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
        slots.* EXCEPT (high, day, hour, busy),
        least(1, arraySum(s -> greatest(0, least(s.2, high) - greatest(s.1, low)) * s.3, named.spans) / (high - low))
            AS by_name,
        least(1, arraySum(s -> greatest(0, least(s.2, high) - greatest(s.1, low)) * s.3, hosts.spans) / (high - low))
            AS by_host,
        by_name + (1 - by_name) * by_host AS held,
        (gpu, toUInt32(hour)) NOT IN (SELECT key, toUInt32(hour) FROM told)
            AND (concat('host:', host), toUInt32(hour)) NOT IN (SELECT key, toUInt32(hour) FROM told) AS untold
    FROM (
        SELECT
            host, gpu, slice, profile, gpu_type, intDiv(toUnixTimestamp(ts), 3600) AS hour,
            toUInt32(intDiv(hour, 24)) AS day,
            arrayMap((u_n, u, e_n, e) -> if(u_n > 0, u / u_n, if(e_n > 0, e / e_n, 0)) >= 0.9,
                fives.6, fives.7, fives.4, fives.5) AS busy,
            (toInt64(hour) * 12 + fives.1[1]) * 300000000000 AS low,
            (toInt64(hour) * 12 + fives.1[-1] + 1) * 300000000000 AS high,
            300. * length(fives.1) AS secs,
            300 * arraySum((n, x) -> if(n > 0, x / n, 0), fives.6, fives.7) AS util_w,
            300. * arrayCount(n -> n > 0, fives.6) AS util_t,
            300 * arraySum((n, x) -> if(n > 0, x / n, 0), fives.4, fives.5) AS engine_w,
            300. * arrayCount(n -> n > 0, fives.4) AS engine_t,
            300 * arraySum((n, x) -> if(n > 0, x / n, 0), fives.2, fives.3) AS tensor_w,
            300. * arrayCount(n -> n > 0, fives.2) AS tensor_t,
            300 * arraySum((n, x, c_n, c) -> if(n > 0 AND c_n > 0, x / n * c / c_n, 0),
                fives.2, fives.3, fives.8, fives.9) AS both_w,
            300. * arrayCount((n, c_n) -> n > 0 AND c_n > 0, fives.2, fives.8) AS both_t,
            300 * arraySum((b, n, x) -> if(b AND n > 0, x / n, 0), busy, fives.8, fives.9) AS busy_w,
            300. * arrayCount((b, n) -> b AND n > 0, busy, fives.8) AS busy_t,
            300 * arraySum((n, x) -> if(n > 0, x / n, 0), fives.10, fives.11) AS power_w,
            300. * arrayCount(n -> n > 0, fives.10) AS power_t,
            arraySum(fives.12) AS xids, arraySum(fives.13) AS doubles, arraySum(fives.14) AS singles
        FROM otel.mfu_gpus_1h FINAL
        WHERE toInt64(toUnixTimestamp(ts)) * 1000000000 >= {since:Int64}
            AND (toInt64(toUnixTimestamp(ts)) + 3600) * 1000000000 <= {until:Int64}
            AND (gpu, intDiv(toUnixTimestamp(ts), 3600)) NOT IN (SELECT key, toUInt32(hour) FROM edges)
            AND (concat('host:', host), intDiv(toUnixTimestamp(ts), 3600)) NOT IN (SELECT key, toUInt32(hour) FROM edges)
        UNION ALL
        SELECT
            host, gpu, slice, profile, gpu_type, hour, toUInt32(intDiv(hour, 24)) AS day, [] AS busy,
            greatest(start_ns, {since:Int64}) AS low, least(start_ns + 300000000000, {until:Int64}) AS high,
            (high - low) / 1e9 AS secs,
            if(util_n > 0, secs * util / util_n, 0) AS util_w, secs * (util_n > 0) AS util_t,
            if(engine_n > 0, secs * engine / engine_n, 0) AS engine_w, secs * (engine_n > 0) AS engine_t,
            if(tensor_n > 0, secs * tensor / tensor_n, 0) AS tensor_w, secs * (tensor_n > 0) AS tensor_t,
            if(tensor_n > 0 AND clock_n > 0, secs * tensor / tensor_n * clock / clock_n, 0) AS both_w,
            secs * (tensor_n > 0 AND clock_n > 0) AS both_t,
            if(is_busy AND clock_n > 0, secs * clock / clock_n, 0) AS busy_w, secs * (is_busy AND clock_n > 0) AS busy_t,
            if(power_n > 0, secs * power / power_n, 0) AS power_w, secs * (power_n > 0) AS power_t,
            xid_n AS xids, double_n AS doubles, single_n AS singles
        FROM (
            SELECT
                host, gpu, slice, profile, gpu_type, intDiv(toUnixTimestamp(ts), 3600) AS hour,
                (toInt64(hour) * 12 + slot) * 300000000000 AS start_ns,
                if(util_n > 0, util / util_n, if(engine_n > 0, engine / engine_n, 0)) >= 0.9 AS is_busy,
                tensor_n, tensor, engine_n, engine, util_n, util, clock_n, clock, power_n, power, xid_n, double_n, single_n
            FROM otel.mfu_gpus_1h FINAL
            ARRAY JOIN
                fives.1 AS slot, fives.2 AS tensor_n, fives.3 AS tensor, fives.4 AS engine_n, fives.5 AS engine,
                fives.6 AS util_n, fives.7 AS util, fives.8 AS clock_n, fives.9 AS clock, fives.10 AS power_n,
                fives.11 AS power, fives.12 AS xid_n, fives.13 AS double_n, fives.14 AS single_n
            WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 3600, 'UTC')
                AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
                AND (toInt64(toUnixTimestamp(ts)) * 1000000000 < {since:Int64}
                    OR (toInt64(toUnixTimestamp(ts)) + 3600) * 1000000000 > {until:Int64}
                    OR (gpu, intDiv(toUnixTimestamp(ts), 3600)) IN (SELECT key, toUInt32(hour) FROM edges)
                    OR (concat('host:', host), intDiv(toUnixTimestamp(ts), 3600))
                        IN (SELECT key, toUInt32(hour) FROM edges))
        )
        WHERE start_ns < {until:Int64} AND start_ns + 300000000000 > {since:Int64}
    ) AS slots
    LEFT JOIN stretches AS named ON named.key = slots.gpu AND named.day = slots.day
    LEFT JOIN stretches AS hosts ON hosts.key = concat('host:', slots.host) AND hosts.day = slots.day
)
GROUP BY host, gpu, slice, profile, gpu_type
ORDER BY host, gpu, slice, profile, gpu_type
SETTINGS do_not_merge_across_partitions_select_final = 1
