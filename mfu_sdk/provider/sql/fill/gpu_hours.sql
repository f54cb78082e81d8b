-- What exporters told in the hours of the days from `first` to `last`, from the five minutes.
INSERT INTO otel.mfu_gpus_1h
SELECT
    toStartOfHour(ts, 'UTC') AS ts, host, gpu, slice, profile, gpu_type,
    ([toUInt8(intDiv(toMinute(f.ts, 'UTC'), 5))], [tensor_n], [tensor], [engine_n], [engine], [util_n], [util],
        [clock_n], [clock], [power_n], [power], [xid_n], [double_n], [single_n]) AS fives
FROM otel.mfu_gpus_5m AS f
WHERE toDate(f.ts) BETWEEN {first:Date} AND {last:Date}
