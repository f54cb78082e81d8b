-- Sums for each GPU type in consecutive buckets of bucket_s seconds (a multiple of 300) over [since, until).
SELECT
    toUnixTimestamp(toStartOfInterval(counted.ts, toIntervalSecond({bucket_s:UInt32}), 'UTC')) AS bucket_unix_s,
    gpu_type,
    sum(counted.model_flop) AS model_flop,
    sum(counted.available_flop) AS available_flop
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = {bucket_s:UInt32}) AS counted
WHERE {everyone:UInt8} OR tenant = {tenant:String}
GROUP BY bucket_unix_s, gpu_type
ORDER BY bucket_unix_s, gpu_type
