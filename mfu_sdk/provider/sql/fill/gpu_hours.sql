-- What exporters told in the hours of the days from `first` to `last`, from the five minutes. An hour that is there
-- already is replaced where more is known of it.
INSERT INTO otel.mfu_gpus_1h
SELECT
    toStartOfHour(f.ts, 'UTC') AS ts, host, gpu, slice, profile, gpu_type, min(f.ts) AS first, max(f.ts) + 300 AS last,
    300 * count() AS secs,
    300 * sumIf(util / util_n, util_n > 0) AS util_w, 300 * countIf(util_n > 0) AS util_s,
    300 * sumIf(engine / engine_n, engine_n > 0) AS engine_w, 300 * countIf(engine_n > 0) AS engine_s,
    300 * sumIf(tensor / tensor_n, tensor_n > 0) AS tensor_w, 300 * countIf(tensor_n > 0) AS tensor_s,
    300 * sumIf(tensor / tensor_n * clock / clock_n, tensor_n > 0 AND clock_n > 0) AS both_w,
    300 * countIf(tensor_n > 0 AND clock_n > 0) AS both_s,
    300 * sumIf(clock / clock_n, busy AND clock_n > 0) AS busy_w, 300 * countIf(busy AND clock_n > 0) AS busy_s,
    300 * sumIf(power / power_n, power_n > 0) AS power_w, 300 * countIf(power_n > 0) AS power_s,
    sum(f.xid_n) AS xid_n, sum(f.double_n) AS double_n, sum(f.single_n) AS single_n,
    sum(tensor_n + engine_n + util_n + clock_n + power_n + f.xid_n + f.double_n + f.single_n) AS samples
FROM (
    SELECT *, if(util_n > 0, util / util_n, if(engine_n > 0, engine / engine_n, 0)) >= 0.9 AS busy
    FROM otel.mfu_gpus_5m FINAL
    WHERE toDate(ts) BETWEEN {first:Date} AND {last:Date}
) AS f
GROUP BY ts, host, gpu, slice, profile, gpu_type
