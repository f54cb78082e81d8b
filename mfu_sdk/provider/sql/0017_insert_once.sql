-- An insert whose answer is lost is sent again under the same insert_deduplication_token; these tables remember theirs
-- for the last thousand inserts. Tables that are fed by views do not: an insert that is known feeds nothing. Where no
-- answer can be lost, in one process, inserts carry none.
ALTER TABLE otel.otel_traces MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_gauge MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_sum MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_histogram MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_logs MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_findings MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_judged_days MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_finding_states MODIFY SETTING non_replicated_deduplication_window = 1000;
