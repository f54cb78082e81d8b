-- Where the time of one run's steps went, by its windows in [since, until): each part over the steps that tell it.
SELECT
    sum(mfu_step_time) AS step_s,
    sum(mfu_step_data_time) AS data_s, sumIf(mfu_step_time, isNotNull(mfu_step_data_time)) AS data_known_s,
    sum(mfu_step_comm_time) AS comm_s, sumIf(mfu_step_time, isNotNull(mfu_step_comm_time)) AS comm_known_s,
    sum(mfu_step_skew_time) AS skew_s, sumIf(mfu_step_time, isNotNull(mfu_step_skew_time)) AS skew_known_s,
    sum(mfu_step_host_time) AS host_s, sumIf(mfu_step_time, isNotNull(mfu_step_host_time)) AS host_known_s
FROM otel.otel_traces
WHERE SpanName = 'mfu.window' AND mfu_run_id = {run_id:String} AND mfu_tenant_id = {tenant:String}
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
