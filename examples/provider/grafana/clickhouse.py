"""The fleet in ClickHouse: every query is a sum over a sum, of the rows that count."""

from typing import Final

from examples.provider.grafana.panels import Dashboard, Panel, Query, Source

# A view with parameters takes literals: Grafana's range in milliseconds, made nanoseconds by six digits more.
COUNTED: Final = "otel.mfu_counted(since = ${{__from}}000000, until = ${{__to}}000000, grain_s = {grain_s}) AS counted"
HOURS: Final = COUNTED.format(grain_s=3600)
FIVES: Final = COUNTED.format(grain_s=300)
TENANT: Final = "tenant IN (${tenant:sqlstring})"
MFU: Final = "sum(counted.model_flop) / sum(counted.available_flop)"
EXPECTED: Final = "sum(counted.expected_flop) / sum(counted.expected_available_flop)"

OF_TENANT: Final = "ResourceAttributes['mfu.tenant.id'] IN (${tenant:sqlstring})"
# A counter of a process goes from 0: where it began in the range all of it is the range's, else what it grew.
GROWN: Final = (
    """SELECT
    ResourceAttributes['mfu.tenant.id'] AS tenant, ResourceAttributes['mfu.workload.name'] AS workload,
    MetricName AS metric, Attributes AS labels,
    max(Value) - if(min(StartTimeUnix) >= $__fromTime, 0, min(Value)) AS grown
  FROM otel.otel_metrics_sum
  WHERE MetricName IN ('mfu.sdk.dropped', 'mfu.sdk.overhead', 'mfu.step.time')
    AND $__timeFilter(TimeUnix) AND """
    + OF_TENANT
    + """
  GROUP BY tenant, workload, ResourceAttributes['service.instance.id'], metric, labels"""
)

CLICKHOUSE: Final = Dashboard(
    "clickhouse",
    "MFU: fleet (ClickHouse)",
    Source("grafana-clickhouse-datasource", "mfu-clickhouse"),
    "SELECT DISTINCT tenant FROM otel.mfu_sums_1h\n"
    "WHERE ts >= toStartOfHour($__fromTime, 'UTC') AND ts <= $__toTime ORDER BY tenant",
    (
        Panel(
            "Fleet",
            "stat",
            "Model FLOPs over available FLOPs of all steps in the range, and what was expected of those that know it.",
            (Query(f'SELECT {MFU} AS "MFU", {EXPECTED} AS "expected MFU"\nFROM {HOURS}\nWHERE {TENANT}'),),
            width=8,
        ),
        Panel(
            "Observed",
            "stat",
            "Hours of GPUs in steps that were told of. Hours that nobody told of are in no figure here.",
            (Query(f'SELECT sum(counted.step_time_s) / 3600 AS "GPU-hours in steps"\nFROM {HOURS}\nWHERE {TENANT}'),),
            unit="h",
            width=4,
        ),
        Panel(
            "MFU, and what looks like use",
            "timeseries",
            "MFU beside its expectation and, where the Collector scrapes DCGM, the share of time that GPUs are busy and"
            " of GPUs that a pod holds. Busy and held is not useful.",
            (
                Query(
                    f'SELECT $__timeInterval(counted.ts) AS time, {MFU} AS "MFU", {EXPECTED} AS "expected MFU"\n'
                    f"FROM {FIVES}\nWHERE {TENANT}\nGROUP BY time ORDER BY time"
                ),
                Query(
                    'SELECT $__timeInterval(TimeUnix) AS time, sum(Value) / 100 / count() AS "GPUs busy (DCGM)",\n'
                    "  nullIf(uniqExactIf(Attributes['UUID'], Attributes['pod'] != ''), 0)"
                    " / uniqExact(Attributes['UUID'])"
                    ' AS "GPUs held by pods (DCGM)"\n'
                    "FROM otel.otel_metrics_gauge\n"
                    "WHERE MetricName = 'DCGM_FI_DEV_GPU_UTIL' AND $__timeFilter(TimeUnix)\n"
                    "GROUP BY time ORDER BY time"
                ),
            ),
        ),
        Panel(
            "By GPU type",
            "timeseries",
            "Different work on different GPUs: compare the same configuration in `mfu report`, question 2.",
            (
                Query(
                    f"SELECT $__timeInterval(counted.ts) AS time, gpu_type, {MFU} AS mfu\n"
                    f"FROM {FIVES}\nWHERE {TENANT}\nGROUP BY time, gpu_type ORDER BY time, gpu_type"
                ),
            ),
        ),
        Panel(
            "Trend",
            "timeseries",
            "One point a day (UTC), over all its steps.",
            (
                Query(
                    "SELECT toStartOfDay(counted.ts, 'UTC') AS time, "
                    f'{MFU} AS "MFU", ({MFU}) / ({EXPECTED}) AS "of what is expected"\n'
                    f"FROM {HOURS}\nWHERE {TENANT}\nGROUP BY time ORDER BY time"
                ),
            ),
        ),
        Panel(
            "Workloads that fall short, by the GPU-hours that it costs",
            "table",
            "At most 90 % of what is expected. A workload without an expectation cannot be judged, and is not here.",
            (
                Query(
                    "SELECT tenant, workload, gpu_type, world_size AS ranks,\n"
                    f"  {MFU} AS mfu, {EXPECTED} AS expected, mfu / expected AS attained,\n"
                    "  sum(counted.step_time_s) / 3600 AS gpu_hours, (1 - attained) * gpu_hours AS short_gpu_hours\n"
                    f"FROM {HOURS}\nWHERE {TENANT}\nGROUP BY tenant, workload, gpu_type, ranks\n"
                    "HAVING attained <= 0.9\nORDER BY short_gpu_hours DESC\nLIMIT 20"
                ),
            ),
            unit="short",
            width=24,
        ),
        Panel(
            "Batches below what would fit",
            "table",
            "Of work whose server says what would fit. Nobody waiting and memory to spare: fewer replicas would do. A"
            " latency target may be why.",
            (
                Query(
                    "SELECT tenant, workload, gpu_type, phase,\n"
                    "  sum(counted.batch_s) / sum(counted.batch_time_s) AS running,\n"
                    "  sum(counted.batch_feasible_weighted) / sum(counted.batch_feasible_s) AS feasible,\n"
                    "  running / feasible AS fill,\n"
                    "  sum(counted.queue_weighted) / nullIf(sum(counted.queue_s), 0) AS waiting,\n"
                    "  sum(counted.kv_free_weighted) / nullIf(sum(counted.kv_free_s), 0) AS kv_cache_free,\n"
                    "  sum(counted.latency_target_weighted) / nullIf(sum(counted.latency_target_s), 0) AS target_s,\n"
                    "  sum(counted.step_time_s) / 3600 AS gpu_hours\n"
                    f"FROM {HOURS}\nWHERE {TENANT} AND counted.batch_feasible_s > 0\n"
                    "GROUP BY tenant, workload, gpu_type, phase\nHAVING fill < 1\nORDER BY fill\nLIMIT 20"
                ),
            ),
            unit="short",
            width=24,
        ),
        Panel(
            "The same model on more ranks",
            "table",
            "MFU and tokens a second of one rank at each number of ranks, and MFU over that of the fewest.",
            (
                Query(
                    "SELECT workload, family, gpu_type, phase, world_size AS ranks,\n"
                    f"  {MFU} AS mfu, sum(counted.tokens) / sum(counted.step_time_s) AS tokens_per_s_of_a_rank,\n"
                    "  mfu / first_value(mfu) OVER (\n"
                    "    PARTITION BY workload, family, gpu_type, phase ORDER BY ranks\n"
                    "  ) AS of_the_fewest\n"
                    f"FROM {HOURS}\nWHERE {TENANT} AND world_size > 0 AND family != ''\n"
                    "GROUP BY workload, family, gpu_type, phase, ranks\n"
                    "ORDER BY workload, family, gpu_type, phase, ranks"
                ),
            ),
            unit="short",
            width=24,
        ),
        Panel(
            "Drift",
            "table",
            "Excursions of runs from their own baselines, as they end; `change` of 0.1 is a tenth slower than before.",
            (
                Query(
                    "SELECT Timestamp AS time, mfu_tenant_id AS tenant, mfu_workload_name AS workload,\n"
                    "  mfu_phase AS phase, mfu_drift_kind AS kind, mfu_drift_measure AS measure,\n"
                    "  mfu_drift_change AS change, mfu_drift_cause AS cause, Duration / 1e9 AS lasted_s,\n"
                    "  mfu_run_id AS run\n"
                    "FROM otel.otel_traces\n"
                    "WHERE SpanName = 'mfu.drift' AND $__timeFilter(Timestamp)\n"
                    "  AND mfu_tenant_id IN (${tenant:sqlstring})\n"
                    "ORDER BY time DESC\nLIMIT 100"
                ),
            ),
            unit="short",
            width=24,
        ),
        Panel(
            "What the SDK lost",
            "table",
            "Items that never arrived, by reason; `budget` is what its overhead budget leaves out, on purpose.",
            (
                Query(
                    "SELECT tenant, workload, labels['mfu.drop.reason'] AS reason, sum(grown) AS items\n"
                    f"FROM (\n  {GROWN}\n)\n"
                    "WHERE metric = 'mfu.sdk.dropped'\nGROUP BY tenant, workload, reason\nHAVING items > 0\n"
                    "ORDER BY items DESC"
                ),
            ),
            unit="short",
        ),
        Panel(
            "What the SDK costs",
            "table",
            "Its time on the step path and that of its threads' processor, over the time of the steps.",
            (
                Query(
                    "SELECT tenant, workload,\n"
                    "  sumIf(grown, metric = 'mfu.sdk.overhead')\n"
                    "    / sumIf(grown, metric = 'mfu.step.time' AND labels['mfu.step.component'] = 'total')"
                    " AS overhead\n"
                    f"FROM (\n  {GROWN}\n)\n"
                    "GROUP BY tenant, workload\nHAVING isFinite(overhead)\nORDER BY overhead DESC"
                ),
            ),
        ),
        Panel(
            "Steps that could not be counted",
            "table",
            "Timed steps without model FLOPs or a peak; they are in no ratio above.",
            (
                Query(
                    "SELECT tenant, workload, sum(counted.unknown_steps) / sum(counted.timed_steps) AS unknown\n"
                    f"FROM {HOURS}\nWHERE {TENANT}\nGROUP BY tenant, workload\nHAVING unknown > 0\n"
                    "ORDER BY unknown DESC"
                ),
            ),
        ),
    ),
)
