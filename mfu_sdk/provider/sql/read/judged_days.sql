-- When each day in [first, last] was judged last.
SELECT day, max(judged_unix_ns) AS judged_unix_ns
FROM otel.mfu_judged_days
WHERE day >= toDate({first:String}) AND day <= toDate({last:String})
GROUP BY day
