-- What exporters told of each GPU (of each slice, where MIG cuts it) in [since, until), in sums over its five minutes.
--
-- A five minutes with a sample stands for all of itself that lies in the range: `x_s` are seconds in which x is known,
-- `x_weighted` is Σ mean × seconds; `held` sums count the part that somebody held, by the stretches that are given (of
-- one GPU, or of a host with a share). `untold` sums are over hours in which the GPU sent no steps of its own.
-- tensor × clock is multiplied by five minutes: within them the two are not correlated by anything known.
WITH
    stretches AS (
        SELECT
            key, groupArray((toInt64(since_ns), toInt64(until_ns), toFloat64(share))) AS spans
        FROM (
            SELECT
                arrayJoin(arrayZip({keys:Array(String)}, {since_ns:Array(String)}, {until_ns:Array(String)},
                    {shares:Array(String)})) AS each,
                each.1 AS key, each.2 AS since_ns, each.3 AS until_ns, each.4 AS share
        )
        GROUP BY key
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
    host, gpu, slice, profile, gpu_type,
    min(low) AS first_ns,
    sum(secs) AS seconds, sum(held) AS held_s,
    sumIf(secs * util_mean, util_n > 0) AS util_weighted, sumIf(secs, util_n > 0) AS util_s,
    sumIf(held * util_mean, util_n > 0) AS util_held_weighted, sumIf(held, util_n > 0) AS util_held_s,
    sumIf(secs * engine_mean, engine_n > 0) AS engine_weighted, sumIf(secs, engine_n > 0) AS engine_s,
    sumIf(held * engine_mean, engine_n > 0) AS engine_held_weighted, sumIf(held, engine_n > 0) AS engine_held_s,
    sumIf(secs * tensor_mean, tensor_n > 0) AS tensor_weighted, sumIf(secs, tensor_n > 0) AS tensor_s,
    sumIf(held * tensor_mean, tensor_n > 0) AS tensor_held_weighted, sumIf(held, tensor_n > 0) AS tensor_held_s,
    sumIf(secs * tensor_mean * clock_mean, estimable) AS untold_mhz_s, sumIf(secs, estimable) AS untold_s,
    sumIf(secs * clock_mean, is_busy AND clock_n > 0) AS busy_mhz_s, sumIf(secs, is_busy AND clock_n > 0) AS busy_s,
    sumIf(secs * power_mean, power_n > 0) AS power_j, sumIf(secs, power_n > 0) AS power_s,
    sum(xid_n) AS xid_samples, sum(double_n) AS double_samples, sum(single_n) AS single_samples
FROM (
    SELECT
        host, gpu, slice, profile, gpu_type, tensor_n, engine_n, util_n, clock_n, power_n, xid_n, double_n, single_n,
        tensor / tensor_n AS tensor_mean, engine / engine_n AS engine_mean, util / util_n AS util_mean,
        clock / clock_n AS clock_mean, power / power_n AS power_mean,
        greatest(start_ns, {since:Int64}) AS low, least(start_ns + 300000000000, {until:Int64}) AS high,
        (high - low) / 1e9 AS secs,
        least(1, arraySum(s -> greatest(0, least(s.2, high) - greatest(s.1, low)) * s.3, named.spans) / (high - low))
            AS named_share,
        least(1, arraySum(s -> greatest(0, least(s.2, high) - greatest(s.1, low)) * s.3, hosts.spans) / (high - low))
            AS host_share,
        secs * (named_share + (1 - named_share) * host_share) AS held,
        if(util_n > 0, util_mean, if(engine_n > 0, engine_mean, 0)) >= 0.9 AS is_busy,
        tensor_n > 0 AND clock_n > 0
            AND (gpu, intDiv(low, 3600000000000)) NOT IN (SELECT key, hour FROM told)
            AND (concat('host:', host), intDiv(low, 3600000000000)) NOT IN (SELECT key, hour FROM told) AS estimable
    FROM (
        SELECT
            toInt64(toUnixTimestamp(ts)) * 1000000000 AS start_ns, host, gpu, slice, profile, gpu_type,
            sum(g.tensor_n) AS tensor_n, sum(g.tensor) AS tensor, sum(g.engine_n) AS engine_n, sum(g.engine) AS engine,
            sum(g.util_n) AS util_n, sum(g.util) AS util, sum(g.clock_n) AS clock_n, sum(g.clock) AS clock,
            sum(g.power_n) AS power_n, sum(g.power) AS power, sum(g.xid_n) AS xid_n, sum(g.double_n) AS double_n,
            sum(g.single_n) AS single_n
        FROM otel.mfu_gpus_5m AS g
        WHERE ts > toDateTime(intDiv({since:Int64}, 1000000000) - 300, 'UTC')
            AND ts < toDateTime(intDiv({until:Int64} + 999999999, 1000000000), 'UTC')
        GROUP BY ts, host, gpu, slice, profile, gpu_type
    ) AS fives
    LEFT JOIN stretches AS named ON named.key = fives.gpu
    LEFT JOIN stretches AS hosts ON hosts.key = concat('host:', fives.host)
)
GROUP BY host, gpu, slice, profile, gpu_type
ORDER BY host, gpu, slice, profile, gpu_type
