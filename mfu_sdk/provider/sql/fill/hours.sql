-- The hours of the days from `first` to `last`, from their five minutes.
INSERT INTO otel.mfu_sums_1h
SELECT toStartOfHour(ts, 'UTC') AS ts, * EXCEPT (ts) FROM otel.mfu_sums_5m
WHERE toDate(ts) BETWEEN {first:Date} AND {last:Date}
