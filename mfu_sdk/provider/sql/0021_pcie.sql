-- What crosses the PCIe bus of each GPU, in bytes a second with headers, in the sums of five minutes: what was sent and
-- what was received, as numbers of samples and their sums. A terabyte a second is beyond any bus of sixteen lanes, and
-- DCGM's blanks are further still. What came in before has no sample of either.
ALTER TABLE otel.mfu_gpus_5m
    ADD COLUMN IF NOT EXISTS pcie_tx_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS pcie_tx SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS pcie_rx_n SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS pcie_rx SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1));

DROP VIEW IF EXISTS otel.mfu_gpus_5m_mv;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.mfu_gpus_5m_mv TO otel.mfu_gpus_5m AS
SELECT
    toDateTime(toStartOfFiveMinutes(at, 'UTC'), 'UTC') AS ts, host, gpu, slice, profile, gpu_type,
    countIf(is_tensor) AS tensor_n, sumIf(value, is_tensor) AS tensor,
    countIf(is_engine) AS engine_n, sumIf(value, is_engine) AS engine,
    countIf(is_util) AS util_n, sumIf(value / 100, is_util) AS util,
    countIf(is_clock) AS clock_n, sumIf(value, is_clock) AS clock,
    countIf(is_power) AS power_n, sumIf(value, is_power) AS power,
    countIf(is_pcie_tx) AS pcie_tx_n, sumIf(value, is_pcie_tx) AS pcie_tx,
    countIf(is_pcie_rx) AS pcie_rx_n, sumIf(value, is_pcie_rx) AS pcie_rx,
    countIf(metric = 'FI_DEV_XID_ERRORS' AND value >= 0 AND value < 65536) AS xid_n,
    countIf(metric = 'FI_DEV_ECC_DBE_VOL_TOTAL' AND value >= 0 AND value < 1e15) AS double_n,
    countIf(metric = 'FI_DEV_ECC_SBE_VOL_TOTAL' AND value >= 0 AND value < 1e15) AS single_n
FROM (
    SELECT
        at, host, gpu, slice, profile, gpu_type, metric, value,
        metric = 'FI_PROF_PIPE_TENSOR_ACTIVE' AND value BETWEEN 0 AND 1 AS is_tensor,
        metric = 'FI_PROF_GR_ENGINE_ACTIVE' AND value BETWEEN 0 AND 1 AS is_engine,
        metric = 'FI_DEV_GPU_UTIL' AND value BETWEEN 0 AND 100 AS is_util,
        metric = 'FI_DEV_SM_CLOCK' AND value > 0 AND value < 10000 AS is_clock,
        metric = 'FI_DEV_POWER_USAGE' AND value >= 0 AND value < 100000 AS is_power,
        metric = 'FI_PROF_PCIE_TX_BYTES' AND value >= 0 AND value < 1e12 AS is_pcie_tx,
        metric = 'FI_PROF_PCIE_RX_BYTES' AND value >= 0 AND value < 1e12 AS is_pcie_rx
    FROM otel.mfu_gpu_points
)
GROUP BY ts, host, gpu, slice, profile, gpu_type
HAVING tensor_n + engine_n + util_n + clock_n + power_n + pcie_tx_n + pcie_rx_n + xid_n + double_n
    + single_n > 0;
