-- What was decided about causes of workloads, in the order of the decisions.
SELECT series, day, state, by, note, at_unix_ns
FROM otel.mfu_finding_states
ORDER BY series, at_unix_ns
