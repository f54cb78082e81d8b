"""Time in which communication is not hidden: by a path that is worse than it need be, or by scale on the best one.

The counterfactual of a poor path is the same bytes at the best rate for this GPU type and message size, that of scale
is no exposed communication at all. Communication is net of skew, so a late rank is neither.

*Where a workload tells no rates* two things are known all the same. One configuration exchanges the same bytes at any
hour, so that links are slower in hours in which more is exposed and steps are longer by it. And a step of training
exchanges its gradients at least, whose bytes follow from what was counted (`gather.gradient_bytes`): what they take on
the best links is a part of the communication that no link can take away, and how slow links are at most follows too,
because no more can be hidden than there is computation.

*Inside one machine* the provider's exporter may know the path where no rate is told: ranks whose GPUs have NVLink, and
that send and receive over PCIe no less than their gradients must move, exchange over that (`_crossing`).
"""

from dataclasses import replace
from typing import Final

from mfu_sdk.provider.causes.evidence import LINKS, Evidence, Smaller
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence

COMM_SHARE: Final = 0.08
BUS_RATIO: Final = 0.62
IDEAL_RATIO: Final = 0.5
LEAST_RANKS: Final = 8
SAME_BATCH: Final = 0.8
"""Below this share of the tokens that a step had at fewer ranks, the batch has shrunk: by choice, not by the ranks."""
LEAST_BUS_RATIO: Final = 0.5
"""What links must reach whose rate nobody tells: half of the lanes, one of two NICs, or sockets in the place of RDMA
reach no more than that."""

GRADIENTS_CROSSING: Final = 0.8
"""The share of the least that a step must exchange which, both sent and received over PCIe, can be nothing else."""
BEYOND_OFFLOADED: Final = 1.25
"""An optimizer on the host is given a rank's gradients and gives its weights back, in 16 bits each (arXiv 2101.06840):
so much more than that must cross."""
PCIE_BYTES_PER_S: Final = 64e9
"""Sixteen lanes of generation 5 in one direction (PCI-SIG). On an older bus the same bytes took longer."""


def poor_topology(e: Evidence) -> Verdict | None:
    """What rates and paths show, or what crosses the PCIe bus of a machine with NVLink: the larger loss."""
    found = [verdict for rule in (_shown, _crossing) if (verdict := rule(e)) is not None]
    if not found:
        return None
    # What shows in two ways is no less sure than in one.
    return replace(max(found, key=lambda each: each.loss), confidence=max(each.confidence for each in found))


def _shown(e: Evidence) -> Verdict | None:
    """More than 8 % exposed, at below 0.62 of the best rate, over a worse path than there is, or since links slowed.

    Of less than 8 % only what links lost is asked for, where both the rate and the path are known to be worse.
    """
    # An exchange at the best rate still costs what it costs; a late rank may be in what is not known to be skew.
    if e.comm is None or e.comm < MATERIAL_LOSS or e.skew is None:
        return None
    ratio = _ratio(e)
    worse = _worse_path(e)
    if ratio is not None:
        slow = ratio < BUS_RATIO
        loss = e.comm * (1 - ratio)
    else:
        # Nobody has measured a better path at this size. Paths of other classes differ by more than this.
        slow = False
        loss = e.comm * (1 - BUS_RATIO) if e.best_bus_bytes_per_s is None else 0.0
    is_worse = (slow or worse is not None) if e.comm > COMM_SHARE else (slow and worse is not None)
    loss = max(loss if is_worse else 0.0, _risen(e))
    if loss < MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {"exposed_comm_share": e.comm, "skew_share": e.skew}
    if e.rest is not None and e.rest.comm is not None:
        shown["exposed_comm_share_in_other_hours"] = e.rest.comm
    if ratio is not None and e.bus_bytes_per_s and e.best_bus_bytes_per_s:
        shown |= {
            "bus_rate_bytes_per_s": e.bus_bytes_per_s,
            "best_bus_rate_bytes_per_s": e.best_bus_bytes_per_s,
            "bus_rate_ratio": ratio,
        }
    if e.link is not None:
        shown["link"] = e.link
    if worse is not None:
        shown["best_link"] = worse
    return Verdict(
        "poor_topology",
        loss,
        confidence(slow, worse is not None),
        shown,
        _remedy(e, ratio, worse),
    )


def _crossing(e: Evidence) -> Verdict | None:
    """One machine's ranks that exchange over PCIe where as many on NVLink do it faster, and lose 5 % or more by that.

    With communication told: what is exposed, less what the same bytes take on the best links. Without it the smaller
    one of two that must both be known: what others of its structure reach beyond its MFU, and how much longer the bytes
    keep even the fastest bus busy than the best links.
    """
    rate = _exchanged_over_pcie(e)
    if rate is None or e.crossing_bytes_per_s is None:
        return None
    ideal = rate / e.crossing_bytes_per_s
    worse = _worse_path(e)
    shown: dict[str, float | str] = {
        "pcie_tx_bytes_per_s": e.pcie_tx_bytes_per_s or 0.0,
        "pcie_rx_bytes_per_s": e.pcie_rx_bytes_per_s or 0.0,
        "best_bus_rate_bytes_per_s": e.crossing_bytes_per_s,
    }
    if e.gradient_bytes_per_step is not None:
        shown["gradient_bytes_per_step_at_least"] = e.gradient_bytes_per_step
    if e.comm is not None:
        if e.comm <= COMM_SHARE or e.skew is None:
            return None
        loss, sure = e.comm - ideal, confidence(*(True, False, worse is not None))
        shown |= {"exposed_comm_share": e.comm, "skew_share": e.skew}
    else:
        missing = _missing_mfu(e)
        if missing is None or "own comm" not in e.untold:
            return None
        busy = rate / PCIE_BYTES_PER_S
        loss, sure = min(missing, busy - ideal), confidence(*(False, False, worse is not None))
        shown["pcie_busy_share_at_least"] = busy
    if loss < MATERIAL_LOSS:
        return None
    if worse is not None and e.link is not None:
        shown |= {"link": e.link, "best_link": worse}
    told = f"Its GPUs send and receive {rate / 1e9:.3g} GB/s over PCIe"
    if worse is not None and e.link_best != worse:
        return Verdict(
            "poor_topology", loss, sure, shown, f"{told}: machines of this GPU type have {worse}; ask for those."
        )
    return Verdict(
        "poor_topology",
        loss,
        sure,
        shown,
        f"{told}, as exchanges that do not take their NVLink do: unset NCCL_P2P_DISABLE and NCCL_P2P_LEVEL, give "
        "containers one view of all GPUs, and look at `nvidia-smi nvlink --status` (activations that are kept in the "
        "host's memory look alike).",
    )


def _exchanged_over_pcie(e: Evidence) -> float | None:
    """Bytes/s that ranks of one machine exchange over PCIe instead of NVLink; None where that is not known.

    A loader only sends to the device, and ranks on several machines reach their NICs over the same bus.
    """
    if e.phase != "train" or e.worse is not None or "bus_bytes_per_s" not in e.untold:
        return None
    if e.type_link != "nvlink" or not e.one_machine or len(e.hosts) != 1 or (e.world_size or 1) < 2:
        return None
    if e.pcie_tx_bytes_per_s is None or e.pcie_rx_bytes_per_s is None:
        return None
    rate = min(e.pcie_tx_bytes_per_s, e.pcie_rx_bytes_per_s)
    if _worse_path(e) is None:
        if e.gradient_bytes_per_step is None or e.weight_bytes is None or e.step_s is None:
            return None
        least = max(GRADIENTS_CROSSING * e.gradient_bytes_per_step, BEYOND_OFFLOADED * e.weight_bytes)
        if rate * e.step_s < least:
            return None
    return rate


def _missing_mfu(e: Evidence) -> float | None:
    """The share by which its MFU is below that of its kin beyond its waits for data and what its clock lacks."""
    if e.mfu is None or not e.kin_mfu or e.data is None or e.clock is None or not e.cohort_clock:
        return None
    return (1 - e.data) * min(1.0, e.clock / e.cohort_clock) - e.mfu / e.kin_mfu


def scaling_inefficiency(e: Evidence) -> Verdict | None:
    """More than 8 % exposed on the best fabric, at 0.62 of its rate or more, with more to exchange than to hide it.

    Where no rate is told: at half of the best rate or more, with more gradients to exchange than that.
    """
    if e.comm is None or e.comm <= COMM_SHARE or e.skew is None:
        return None
    if e.world_size is None or e.world_size <= LEAST_RANKS:
        return None
    is_told = not {"bus_bytes_per_s", "ideal_ratio"} <= e.untold
    known = _told(e) if is_told else _by_gradients(e, e.comm, e.skew)
    if known is None:
        return None
    ratio, ideal = known
    # Scale is a job's own from its first step on.
    if any(part.worse == "comm" and (not is_told or _risen(part) >= MATERIAL_LOSS) for part in e.parts):
        return None
    smaller = e.smaller
    if smaller is not None and (e.rank_tokens is None or _has_shrunk(e.rank_tokens * e.world_size, smaller)):
        return None
    shown: dict[str, float | str] = {
        "exposed_comm_share": e.comm,
        "bus_rate_ratio" if is_told else "bus_rate_ratio_at_least": ratio,
        "ideal_comm_over_compute" if is_told else "ideal_gradients_over_compute": ideal,
        "ranks": float(e.world_size),
    }
    slows, is_sure = False, (e.type_link is not None,) if is_told else (False, False)
    if smaller is not None and e.tokens_per_s is not None:
        kept = e.tokens_per_s / smaller.tokens_per_s
        shown |= {"tokens_per_s_against_fewer_ranks": kept, "fewer_ranks": float(smaller.world_size)}
        slows = kept < 1 - MATERIAL_LOSS
    return Verdict(
        "scaling_inefficiency",
        e.comm,
        confidence(slows, *is_sure),
        shown,
        f"At {e.world_size:,} ranks {e.comm:.0%} of the time is communication that nothing hides, on links that are "
        + ("as fast as they get" if is_told else "not the half of it (their rates would say more)")
        + ": raise the batch of a rank or accumulate gradients, shard within a node only (HSDP), or run "
        "on fewer ranks.",
    )


def _told(e: Evidence) -> tuple[float, float] | None:
    """The rate over the best one and communication over computation on ideal links, on the best path and that fast."""
    ratio = _ratio(e)
    if ratio is None or ratio < BUS_RATIO or e.ideal_ratio is None or e.ideal_ratio <= IDEAL_RATIO:
        return None
    return (ratio, e.ideal_ratio) if _best_path(e) else None


def _by_gradients(e: Evidence, comm: float, skew: float) -> tuple[float, float] | None:
    """The least that both can be, between machines, where no rate is told; None where that is not enough."""
    if e.least_comm is None or e.link != "network" or e.one_machine is not False:
        return None
    computed = 1 - comm - skew - (e.data or 0.0)
    if computed <= 0 or e.least_comm <= IDEAL_RATIO * computed:
        return None
    # Exposed and hidden together are what communication took.
    ratio = e.least_comm / (comm + computed)
    return (ratio, e.least_comm / computed) if ratio >= LEAST_BUS_RATIO else None


def _has_shrunk(tokens: float, smaller: Smaller) -> bool:
    """Whether a step has fewer tokens than it had at fewer ranks; ranks that share the same step have less each."""
    return tokens < SAME_BATCH * smaller.rank_tokens * smaller.world_size


def _ratio(e: Evidence) -> float | None:
    return e.bus_bytes_per_s / e.best_bus_bytes_per_s if e.bus_bytes_per_s and e.best_bus_bytes_per_s else None


def _risen(e: Evidence) -> float:
    """How much more is exposed than in other hours of the same configuration, where its own links were faster then.

    The same exchanges over the same links need no allowance for what others exchange. Where no rate is told, steps must
    be longer by it: faster computation hides less, too.
    """
    rest = e.rest
    if e.comm is None or rest is None or rest.comm is None:
        return 0.0
    if e.bus_bytes_per_s and rest.bus_bytes_per_s:
        slowed = e.bus_bytes_per_s < (1 - MATERIAL_LOSS) * rest.bus_bytes_per_s
    elif "bus_bytes_per_s" in e.untold and e.mfu is not None and rest.mfu is not None:
        slowed = e.mfu < (1 - MATERIAL_LOSS) * rest.mfu
    else:
        return 0.0
    return e.comm - rest.comm if slowed else 0.0


def _worse_path(e: Evidence) -> str | None:
    """The better path that there is for these ranks, None where it is taken or nothing is known of one."""
    if e.link not in LINKS or e.link == "none":
        return None
    if e.link == "network" and not e.one_machine:
        # Between machines there is no other way.
        return None
    best = max((each for each in (e.link_best, e.type_link) if each in LINKS), key=LINKS.index, default=None)
    return best if best is not None and LINKS.index(best) > LINKS.index(e.link) else None


def _best_path(e: Evidence) -> bool:
    """Whether these ranks are known to take the best path that there is for them."""
    if e.link is None or _worse_path(e) is not None:
        return False
    return e.one_machine is False if e.link == "network" else e.link_best is not None


def _remedy(e: Evidence, ratio: float | None, worse: str | None) -> str:
    reached = "" if ratio is None else f" at {ratio:.0%} of the rate that {e.gpu_type or 'this GPU type'} reaches"
    told = f"{e.comm or 0:.0%} of the time is communication{reached}"
    if worse is None:
        return (
            f"{told}: compare NCCL_DEBUG=INFO with a fast run (NCCL_P2P_DISABLE, NCCL_SHM_DISABLE, NCCL_IB_DISABLE, "
            "NCCL_SOCKET_IFNAME), and ask for nodes on one switch."
        )
    if e.link == "network":
        return f"{told}: its {e.world_size or 'few'} ranks fit on one machine; ask for one node instead of several."
    if e.link_best in LINKS and LINKS.index(e.link_best) > LINKS.index(e.link or "none"):
        return (
            f"{told}, over {e.link} where this machine has {worse}: unset NCCL_P2P_DISABLE and NCCL_P2P_LEVEL, and "
            f"place the ranks on devices that {worse} joins."
        )
    return f"{told}, over {e.link}: machines of this GPU type have {worse}; ask for those."
