-- When each day in [first, last] was judged last.
SELECT toString(day) AS day, max(judged_unix_ns) AS judged_unix_ns
FROM otel.mfu_judged_days AS judged
WHERE judged.day >= toDate({first:String}) AND judged.day <= toDate({last:String})
GROUP BY judged.day
