"""What others show: whom a workload is held against, and where the same cause is in many places."""

from collections.abc import Sequence
from dataclasses import replace

from mfu_sdk.provider.causes import Evidence, Smaller, judge, systemic
from mfu_sdk.provider.causes.context import complete
from mfu_sdk.provider.causes.gather import Gathered, Sign, Unit, gradient_bytes

from .conftest import DECODING, TRAINING, approx


def of(e: Evidence, name: str, clocks: Sequence[float] = (), rate: float | None = None, size: float = 1e9) -> Gathered:
    e = replace(e, workload=name, clock=min(clocks, default=None), best_bus_bytes_per_s=None, bus_bytes_per_s=rate)
    unit = Unit(
        e.tenant, e.workload, e.family, e.gpu_type, e.world_size, e.intent, e.fingerprint, e.phase,
    )  # fmt: skip
    return Gathered(unit, e, tuple(clocks), rate, size if rate else None, devices_by_host={"node-1": 8})


def test_cohorts_by_phase() -> None:
    """Training draws more power than decoding: their clocks are no measure of one another, and three are no median."""
    found = complete([of(TRAINING, "t", (0.8,) * 8), of(DECODING, "d", (0.99,) * 3)], {}, {}, {})
    assert [e.cohort_clock for e in found] == [0.8, None]


def test_cohorts_by_what_holds_them() -> None:
    """Devices at their power limit are held against others at theirs; slices and idle ones say nothing of that."""
    held, free = replace(TRAINING, cap=1.0), replace(TRAINING, cap=0.0)
    cut = replace(held, mig_profile="1g.10gb")
    fleet = [of(held, "h", (0.8,) * 4), of(free, "f", (1.0,) * 9), of(cut, "c", (0.9,) * 9)]
    assert [e.cohort_clock for e in complete(fleet, {}, {}, {})] == [0.8, 1.0, 0.9]


def test_what_is_doubted_is_no_measure() -> None:
    """Clocks of a workload that tells of somebody else's GPUs are in no median; it is held against the others'."""
    fleet = [of(TRAINING, "true", (0.8,) * 4), of(TRAINING, "doubted", (1.0,) * 8)]
    assert [e.cohort_clock for e in complete(fleet, {}, {}, {})] == [1.0, 1.0]
    assert [e.cohort_clock for e in complete(fleet, {}, {}, {}, doubted={fleet[1].unit})] == [0.8, 0.8]


def test_alike_layouts_have_alike_messages() -> None:
    """The same bytes a step are many small messages where ranks share each product: no measure for a few large ones."""
    on = replace(TRAINING, link="nvlink", world_size=8)
    many = replace(of(on, "tp", rate=100e9), ranks_per_replica=8.0)
    fleet = [many, of(on, "a", rate=300e9), of(on, "b", rate=280e9)]
    assert complete(fleet, {}, {}, {})[0].best_bus_bytes_per_s == 100e9


def test_kin_and_crossing() -> None:
    """What two others of the structure reached at steps of this size, and as many ranks with as many bytes a step."""
    on = replace(TRAINING, link="nvlink", world_size=8, data=0.1)
    slow = replace(on, link=None, pcie_tx_bytes_per_s=4e9, pcie_rx_bytes_per_s=2e9, mfu=0.2)
    mine = replace(of(slow, "mine"), step_s=0.5)  # 1 GB a step
    best = of(replace(on, mfu=0.45), "best", rate=300e9)
    second = of(replace(on, mfu=0.36), "second", rate=280e9)
    found = complete([mine, best, second], {}, {}, {})[0]
    assert (found.kin_mfu, found.crossing_bytes_per_s) == (approx(0.36 / 0.9), 280e9)
    assert "own comm" not in found.untold
    assert "own comm" in complete([of(replace(on, comm=None), "old")], {}, {}, {})[0].untold
    alone = complete([mine, best], {}, {}, {})[0]
    assert (alone.kin_mfu, alone.crossing_bytes_per_s) == (None, None)
    # Other sizes of steps, structures and numbers of ranks are no measure.
    others = [
        of(replace(on, rank_tokens=8192.0 * 5), "large", rate=300e9),
        of(replace(on, family="f2"), "other", rate=300e9),
        of(replace(on, world_size=4), "four", rate=300e9),
    ]
    few = complete([mine, best, *others], {}, {}, {})[0]
    assert (few.kin_mfu, few.crossing_bytes_per_s) == (approx(0.5), 300e9)
    assert complete([mine, best, others[2]], {}, {}, {})[0].crossing_bytes_per_s is None


def test_paths() -> None:
    """Machines of a type have the best path that any of them tells, or the inventory; ranks fit or do not."""
    one = of(replace(TRAINING, link="pcie", link_best="pcie", world_size=8), "one")
    two = of(replace(TRAINING, link="nvlink", link_best="nvlink", world_size=64), "two")
    none = of(replace(TRAINING, gpu_type="L40S", link_best=None, world_size=16), "none")
    found = {e.workload: e for e in complete([one, two, none], {}, {"L40S": "pcie"}, {"L40S": 4})}
    assert (found["one"].type_link, found["one"].one_machine) == ("nvlink", True)
    assert (found["two"].one_machine, found["none"].one_machine) == (False, False)
    assert found["none"].type_link == "pcie"


def test_cohort_of_whom_nobody_says_what_holds_it() -> None:
    """A clock that the exporter told has no reasons: the lower of the two cohorts is what it is held against."""
    held, free = replace(TRAINING, cap=1.0), replace(TRAINING, cap=0.0)
    fleet = [of(held, "h", (0.8,) * 4), of(free, "f", (1.0,) * 9), of(replace(TRAINING, cap=None), "n", (0.75,) * 2)]
    assert [e.cohort_clock for e in complete(fleet, {}, {}, {})] == [0.8, 1.0, 0.8]


def test_paths_by_place() -> None:
    """Who tells no path is on no better one than its machine has, on the network between machines, else unknown."""
    silent = replace(TRAINING, link=None, link_best=None, world_size=8, hosts=("node-1",))
    fleet = [
        of(silent, "poor machine"),
        of(replace(silent, hosts=("node-2",)), "good machine"),
        of(replace(silent, hosts=("node-3",)), "no inventory"),
        of(replace(silent, hosts=("node-1", "node-2")), "two machines"),
        of(replace(silent, world_size=1), "one rank"),
        of(replace(silent, link="system"), "told"),
    ]
    links = {"node-1": "pcie", "node-2": "nvlink"}
    found = complete(fleet, {}, {TRAINING.gpu_type or "": "nvlink"}, {}, links)
    assert [e.link for e in found] == ["pcie", None, None, "network", None, "system"]


def test_rates_of_the_worse_path_do_not_count() -> None:
    """What was measured over PCIe is not the best where machines of this type have NVLink, and others' rates are."""
    on_pcie = replace(TRAINING, link="pcie", link_best="nvlink", world_size=8)
    on_nvlink = replace(TRAINING, link="nvlink", world_size=8)
    slow = of(on_pcie, "slow", rate=20e9)
    [alone] = complete([slow], {}, {}, {})
    assert alone.best_bus_bytes_per_s is None
    fleet = [slow, of(on_nvlink, "a", rate=300e9), of(on_nvlink, "b", rate=280e9), of(on_nvlink, "liar", rate=9e12)]
    found = {e.workload: e.best_bus_bytes_per_s for e in complete(fleet, {}, {}, {})}
    # One that claims thirty times as much as the others sets it for nobody else.
    assert found["slow"] == found["b"] == 300e9


def test_between_machines() -> None:
    """Ranks that need several machines are held against others that do."""
    across = replace(TRAINING, link="network", world_size=64)
    within = replace(TRAINING, link="nvlink", world_size=8)
    fleet = [of(across, "x", rate=10e9), of(across, "y", rate=45e9), of(across, "z", rate=40e9)]
    fleet += [of(within, "n", rate=300e9), of(within, "m", rate=300e9)]
    found = {e.workload: e.best_bus_bytes_per_s for e in complete(fleet, {}, {}, {})}
    assert found["x"] == 40e9
    assert found["n"] == 300e9


def test_least_exchange() -> None:
    """0.1 s of gradients, at what two others of as many ranks reached between machines, in a step of 0.2 s."""
    across = replace(TRAINING, link="network", world_size=64)
    fleet = [of(across, "x", rate=45e9), of(across, "y", rate=40e9)]
    # Rings over fewer machines are faster, and one machine's links say nothing of the network.
    fleet += [of(replace(across, world_size=32), name, rate=90e9) for name in ("f", "g")]
    fleet += [of(replace(TRAINING, link="nvlink", world_size=8), name, rate=300e9) for name in ("n", "m")]
    silent = replace(of(replace(across, ideal_ratio=None), "s"), gradient_bytes_per_step=4e9, step_s=0.2)
    sized = [replace(each, comm_bytes_per_step=6e9) for each in fleet]
    found = {e.workload: e for e in complete([*sized, silent], {}, {}, {})}
    assert found["s"].least_comm == approx(4e9 / 40e9 / 0.2)
    assert {"bus_bytes_per_s", "ideal_ratio"} <= found["s"].untold
    assert not {"bus_bytes_per_s", "ideal_ratio"} & found["x"].untold
    other_size = [replace(each, comm_bytes_per_step=0.9e9) for each in fleet]
    for few in ([silent], [sized[0], *sized[2:], silent], [*other_size, silent]):
        # Nobody, one alone, or exchanges of another size.
        assert {e.workload: e for e in complete(few, {}, {}, {})}["s"].least_comm is None


def test_bytes_of_gradients() -> None:
    """60 GFLOPs a token, a fifth of them attention's, are 8e9 weights, of which a rank has half: 15/16 of it twice."""
    sign = Sign(0, None, "GPU-0", 1.0, 0, 1, dp=16, flops_per_token=60e9, attention=0.2)
    assert gradient_bytes([sign, replace(sign, rank=1)], 32) == approx(2 * 15 / 16 * 2 * 4e9)
    for lost in (replace(sign, attention=None), replace(sign, flops_per_token=None), replace(sign, dp=None)):
        assert gradient_bytes([sign, lost], 32) is None
    # Ranks that are no replicas of one another exchange no gradients.
    assert gradient_bytes([replace(sign, dp=1)], 8) is gradient_bytes([sign], None) is gradient_bytes([], 32) is None


def test_fewer_ranks() -> None:
    """Whoever is held against fewer ranks is so against itself, else against one whose ranks do no more in a step."""
    big = of(replace(TRAINING, world_size=64), "llama")
    own = of(replace(TRAINING, world_size=16, rank_tokens=65_536.0), "llama")
    other = of(replace(TRAINING, world_size=32, rank_tokens=65_536.0), "other")
    alike = of(replace(TRAINING, world_size=8), "alike")

    def smaller(*fleet: Gathered) -> Smaller | None:
        return next(
            e.smaller for e in complete([big, *fleet], {}, {}, {}) if e.workload == "llama" and e.world_size == 64
        )

    assert smaller(own, other, alike) == Smaller(16, 65_536.0, 9000.0)
    assert smaller(other, alike) == Smaller(8, 8192.0, 9000.0)
    assert smaller(other) is None


def test_queue_that_nobody_tells() -> None:
    """A workload of which no phase tells a queue tells none; where one does, it was lost in the others."""
    prompts = replace(DECODING, phase="prefill", queue=None)
    found = complete([of(DECODING, "a"), of(prompts, "a"), of(prompts, "b")], {}, {}, {})
    assert ["queue" in e.untold for e in found] == [False, False, True]


def fleet(driver: str, names: str, data: float) -> list[Evidence]:
    places = {"driver": (driver,), "node": ("node-1",)}
    return [replace(TRAINING, workload=name, data=data, places=places) for name in names]


def test_shared() -> None:
    """Three of four on one driver, and one of four elsewhere; what they all share is no difference."""
    evidence = fleet("550", "abc", 0.3) + fleet("550", "d", 0.0) + fleet("535", "e", 0.3) + fleet("535", "fgh", 0.0)
    [found] = systemic(evidence, judge(evidence))
    assert (found.cause, found.kind, found.place) == ("input_bound", "driver", "550")
    assert (found.workloads, found.of_workloads, found.elsewhere, found.tenants) == (3, 4, 0.25, 1)


def test_not_shared() -> None:
    """Two workloads, fewer than half of those there, or as many elsewhere: no place stands out."""
    for there, others in (
        (fleet("550", "ab", 0.3), fleet("535", "fgh", 0.0)),
        (fleet("550", "abc", 0.3) + fleet("550", "dijk", 0.0), fleet("535", "fgh", 0.0)),
        (fleet("550", "abc", 0.3), fleet("535", "efg", 0.3)),
        (fleet("550", "abc", 0.3), []),
    ):
        evidence = there + others
        assert systemic(evidence, judge(evidence)) == ()


def test_one_for_each_workload_and_cause() -> None:
    """Of two configurations with one cause the one that cost more time is told."""
    short = replace(TRAINING, data=0.5, time_s=100.0, fingerprint="a")
    long = replace(TRAINING, data=0.2, time_s=1000.0, fingerprint="b")
    assert [each.loss_share for each in judge([short, long])] == [0.2]
    assert len(judge([short, replace(long, day="2026-05-29")])) == 2


def test_what_cannot_be_is_no_measure() -> None:
    """Workloads whose own figures clash set neither the rate nor the clock that others are held against."""
    on = replace(TRAINING, link="nvlink", world_size=8)
    false = replace(on, mfu=1.5)
    fleet = [of(on, "a", (0.8,) * 8, rate=280e9), of(on, "b", (0.8,) * 8, rate=300e9)]
    fleet += [of(false, name, (1.0,) * 40, rate=900e9) for name in ("c", "d")]
    found = {e.workload: e for e in complete(fleet, {}, {}, {})}
    assert (found["a"].best_bus_bytes_per_s, found["a"].cohort_clock) == (280e9, 0.8)
