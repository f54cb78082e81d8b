"""The fleet in Prometheus: mostly what prometheus/rules.yml records."""

from typing import Final

from examples.provider.grafana.panels import Dashboard, Panel, Query, Source

OF: Final = '{mfu_tenant_id=~"$tenant"}'
NAMED: Final = "* on (job, instance, mfu_tenant_id) group_left (mfu_workload_name) mfu:target_info:one"
SCALED: Final = (
    "* on (job, instance, mfu_tenant_id)"
    " group_left (mfu_workload_name, hw_name, mfu_dist_world_size) mfu:target_info:one"
)


def by_scale(metric: str) -> str:
    """The rate of a counter by workload, GPU type and number of ranks."""
    return f"sum by (mfu_workload_name, hw_name, mfu_dist_world_size) (\n  rate({metric}{OF}[5m])\n  {SCALED}\n)"


WORKLOAD: Final = "{{mfu_tenant_id}} {{mfu_workload_name}} {{mfu_phase}}"

PROMETHEUS: Final = Dashboard(
    "prometheus",
    "MFU: fleet (Prometheus)",
    Source("prometheus", "mfu-prometheus"),
    "label_values(tenant:mfu:ratio5m, mfu_tenant_id)",
    (
        Panel(
            "Fleet",
            "stat",
            "Σ rate of model FLOPs / Σ rate of available FLOPs; what is reached of the expectation; GPUs that"
            " the SDK tells of among those that DCGM sees.",
            (
                Query("fleet:mfu:ratio5m", "MFU"),
                Query("fleet:attained:ratio5m", "of what is expected"),
                Query("fleet:observed:ratio", "GPUs observed"),
            ),
        ),
        Panel(
            "MFU, and what looks like use",
            "timeseries",
            "MFU beside its expectation and, where kube-state-metrics and DCGM are scraped, GPUs allocated, busy, and"
            " with tensor pipes at work. Allocated and busy is not useful.",
            (
                Query("fleet:mfu:ratio5m", "MFU"),
                Query("fleet:mfu_expected:ratio5m", "expected MFU"),
                Query("fleet:tensor_active:ratio", "tensor pipes active (DCGM)"),
                Query("fleet:gpu_util:ratio", "GPUs busy (DCGM)"),
                Query("fleet:allocation:ratio", "GPUs allocated"),
            ),
        ),
        Panel(
            "By GPU type",
            "timeseries",
            "Different work on different GPUs: compare the same configuration in `mfu report`, question 2.",
            (Query("gpu_type:mfu:ratio5m", "{{hw_name}}"),),
        ),
        Panel(
            "By tenant",
            "timeseries",
            "A tenant is who the Collector says it is.",
            (Query(f"tenant:mfu:ratio5m{OF}", "{{mfu_tenant_id}}"),),
        ),
        Panel(
            "Workloads that fall short",
            "table",
            "The ten that reach the least of what is expected of them.",
            (Query(f"bottomk(10, workload:attained:ratio5m{OF})", WORKLOAD),),
        ),
        Panel(
            "Trend",
            "timeseries",
            "Over the day before each point: sums of a day over sums of a day.",
            (
                Query(
                    f"sum(sum_over_time(mfu:model_flop:rate5m{OF}[1d]))\n"
                    f"  / sum(sum_over_time(mfu:available_flop:rate5m{OF}[1d]))",
                    "MFU of a day",
                ),
            ),
        ),
        Panel(
            "The same workload on more ranks",
            "timeseries",
            "MFU by the number of ranks.",
            (
                Query(
                    by_scale("mfu_model_flop_total") + "\n/ " + by_scale("mfu_available_flop_total"),
                    "{{mfu_workload_name}} {{hw_name}} × {{mfu_dist_world_size}}",
                ),
            ),
        ),
        Panel(
            "Where the steps' time goes",
            "timeseries",
            "Parts of the time of steps, over all of it; a part that nobody measures is not there.",
            (
                Query(
                    f"sum by (mfu_step_component) (rate(mfu_step_time_seconds_total{OF}[5m]))\n"
                    "  / scalar(sum(rate(mfu_step_time_seconds_total"
                    '{mfu_tenant_id=~"$tenant", mfu_step_component="total"}[5m])))',
                    "{{mfu_step_component}}",
                ),
            ),
        ),
        Panel(
            "Batches below what would fit",
            "timeseries",
            "What runs over what would fit, of servers that say so; the fullest process of each workload.",
            (
                Query(
                    f"max by (mfu_tenant_id, mfu_workload_name, mfu_phase) (\n  mfu_batch_fill_ratio{OF} {NAMED}\n)",
                    WORKLOAD,
                ),
                Query("mfu:queue_waiting:max5m", "waiting in vLLM: {{k8s_pod_name}}"),
            ),
            unit="short",
        ),
        Panel(
            "Drift",
            "timeseries",
            "Excursions from a run's own baseline that have not recovered.",
            (
                Query(
                    f"max by (mfu_tenant_id, mfu_workload_name, mfu_phase) (\n  mfu_drift_active{OF} {NAMED}\n)",
                    WORKLOAD,
                ),
            ),
            unit="short",
        ),
        Panel(
            "What the SDK lost",
            "timeseries",
            "Items a second that never arrived, by reason; `budget` is left out on purpose.",
            (Query(f"sum by (mfu_drop_reason) (rate(mfu_sdk_dropped_total{OF}[5m]))", "{{mfu_drop_reason}}"),),
            unit="cps",
        ),
        Panel(
            "What the SDK costs",
            "timeseries",
            "Seconds of the SDK over seconds of steps.",
            (
                Query(
                    f"sum by (mfu_tenant_id) (rate(mfu_sdk_overhead_seconds_total{OF}[5m]))\n"
                    "  / sum by (mfu_tenant_id) (rate(mfu_step_time_seconds_total"
                    '{mfu_tenant_id=~"$tenant", mfu_step_component="total"}[5m]))',
                    "{{mfu_tenant_id}}",
                ),
            ),
        ),
    ),
)
