-- Model FLOPs of all that counts in [since, until).
SELECT sum(counted.model_flop) AS model_flop
FROM otel.mfu_counted(since = {since:Int64}, until = {until:Int64}, grain_s = 3600) AS counted
WHERE {everyone:UInt8} OR tenant = {tenant:String}
