-- An insert whose answer is lost is sent again under the same insert_deduplication_token, by which these tables know it
-- for the next thousand inserts: those that are inserted into, and those that are fed from them, because the engine
-- passes an insert on to views whether or not it is known. Where no answer can be lost, in one process, there are none.
ALTER TABLE otel.otel_traces MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_gauge MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_sum MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_metrics_histogram MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.otel_logs MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_findings MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_judged_days MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_finding_states MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_sums_5m MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_sums_1h MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_counting_1h MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_gpus_5m MODIFY SETTING non_replicated_deduplication_window = 1000;

ALTER TABLE otel.mfu_gpu_errors_5m MODIFY SETTING non_replicated_deduplication_window = 1000;
