-- The five minutes of the days from `first` to `last`, from their spans; what is inserted is fed on into the hours.
INSERT INTO otel.mfu_sums_5m
SELECT * EXCEPT (Timestamp) FROM otel.mfu_span_sums
WHERE toDate(Timestamp, 'UTC') BETWEEN {first:Date} AND {last:Date}
