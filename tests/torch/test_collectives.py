"""The collectives of a process group, measured between real processes over gloo.

Run as a script this file is one rank: it does the acts that the tests ask about and writes down what came of each.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mfu_sdk.counting.collective_time import COLLECTIVES, bus_factor

pytestmark = pytest.mark.slow

BUDGET_S = 0.4
SLOW_S = 0.02
"""How long a slow rank sleeps, or on a busy machine three times what a call takes."""
SHORT_WAIT_S = {2: 1.5, 4: 5.0}
"""By ranks: of four, three have to come in this time."""
HOSTS = {"two hosts": "aabb", "unequal hosts": "aaab", "links": "aabb"}
"""The host of each of four ranks."""


# --- one rank ---------------------------------------------------------------------------------------------------------


def be_a_rank(folder: Path) -> None:
    """Do each act of this world, and write what came of it into `folder`."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    users = dist.new_group(list(range(1, world)) if world > 2 else [0, 1])
    # What a user may have set, and what must be as it was afterwards.
    torch.manual_seed(7 + rank)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    before = state_of_the_user()
    told: dict[str, Any] = {}
    for name, come in (two_ranks if world == 2 else four_ranks)(rank, users):
        if come is not None:
            told[name] = outcome(come)
        # A rank that has no part in an act must not come too early to the next.
        dist.barrier()
    told["undisturbed"] = state_of_the_user() == before
    told["groups work"] = groups_work(users, rank, world)
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


Act = tuple[str, Callable[[], Any] | None]


def two_ranks(rank: int, users: Any) -> Iterator[Act]:
    """The same acts on both ranks, but for who does what wrong, or does not come."""
    yield "plain", lambda: measure(budget_s=4 * BUDGET_S)
    import time

    plain: list[Any] = []

    def given() -> Any:
        plain.append(measure(group=users))
        return plain[0]

    yield "given group", given
    # The record of the group is the same on both ranks, and so is this.
    quickest = [rate["times"][0]["seconds"] for found in plain for rate in found["rates"].values()]
    slow_s = max([SLOW_S, *(3 * seconds for seconds in quickest)])
    yield "slowed by", lambda: slow_s
    with each_call(after=(lambda _part: time.sleep(slow_s)) if rank == 1 else None):
        yield "slow", measure
    with each_call(after=adding_one if rank == 1 else None):
        yield "wrong on one", measure
    with maximum_for_sum():
        yield "wrong on all", measure
    with each_call(after=giving_up if rank == 1 else None):
        yield "gives up", measure
    with refusing("all_to_all_single"):
        yield "not supported", measure
    yield "absent", briefly if rank == 0 else None
    yield "after absent", measure
    yield "rank 0 absent", briefly if rank == 1 else None
    yield "after rank 0 absent", measure
    yield "other budget", lambda: measure(budget_s=BUDGET_S * (1 + rank))


def four_ranks(rank: int, users: Any) -> Iterator[Act]:
    """One host, then hosts that are told by NCCL_HOSTID as NCCL tells them; and three ranks of the four."""
    yield "plain", measure
    for name in ("two hosts", "unequal hosts"):
        os.environ["NCCL_HOSTID"] = HOSTS[name][rank]
        yield name, measure
    os.environ["NCCL_HOSTID"] = HOSTS["links"][rank]
    with device_of_its_own(rank):
        yield "links", lambda: measure(link_between=lambda a, b: {"GPU-0 GPU-1": "nvlink"}.get(f"{a} {b}", "system"))
    del os.environ["NCCL_HOSTID"]
    yield "given group", (lambda: measure(group=users)) if rank > 0 else None
    yield "absent", briefly if rank != 2 else None


def measure(**arguments: Any) -> Any:
    from mfu_sdk.peak.collectives import measure

    return asdict(measure(**({"budget_s": BUDGET_S} | arguments)))


def briefly() -> Any:
    return measure(wait_s=SHORT_WAIT_S[int(os.environ["WORLD_SIZE"])])


def outcome(come: Callable[[], Any]) -> Any:
    try:
        return come()
    except Exception as error:  # noqa: BLE001 - told as it is
        return f"{type(error).__name__}: {error}"


def state_of_the_user() -> list[Any]:
    """What a measurement has no business to change."""
    import random

    import torch
    from torch.distributed import distributed_c10d

    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        len(distributed_c10d._world.pg_map),
    ]


def groups_work(users: Any, rank: int, world: int) -> bool:
    """Whether the user's group and the default one still add up."""
    import torch
    import torch.distributed as dist

    ones = torch.ones(3, device="cpu")
    dist.all_reduce(ones)
    expected = world
    if world == 2 or rank > 0:
        dist.all_reduce(ones, group=users)
        expected *= 2 if world == 2 else world - 1
    return ones.tolist() == [expected] * 3


@contextmanager
def each_call(after: Callable[[Any], None] | None) -> Iterator[None]:
    """Each collective that is measured on this rank does something more."""
    from mfu_sdk.peak.collective_parts import Part

    original = Part.call

    def call(part: Part) -> None:
        original(part)
        if after is not None:
            after(part)

    Part.call = call  # type: ignore[method-assign]
    yield
    Part.call = original  # type: ignore[method-assign]


def adding_one(part: Any) -> None:
    # The first number of eight is wrong from the second size on, so that the first check alone would not see it.
    if part.out.numel() > 1024:
        part.out[0] += 1


def giving_up(part: Any) -> None:
    if part.collective == "all_gather":
        raise OSError("no more of this")


@contextmanager
def maximum_for_sum() -> Iterator[None]:
    """A reduction that is an other one than was asked for."""
    import torch.distributed as dist

    original = dist.all_reduce

    def all_reduce(tensor: Any, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        original(tensor, op=dist.ReduceOp.MAX, group=group)

    dist.all_reduce = all_reduce
    yield
    dist.all_reduce = original


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """A backend without one of the collectives."""
    import torch.distributed as dist

    original = getattr(dist, name)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("ProcessGroup does not support alltoall")

    setattr(dist, name, refuse)
    yield
    setattr(dist, name, original)


@contextmanager
def device_of_its_own(rank: int) -> Iterator[None]:
    """Each rank says that it has a GPU; what it measures stays as it is."""
    from mfu_sdk.peak import collectives
    from mfu_sdk.peak.device import Device

    original = collectives.resolve
    collectives.resolve = lambda _device: Device("cuda:0", "GPU", "NVIDIA", f"GPU-{rank}")
    yield
    collectives.resolve = original


# --- what the tests ask about ----------------------------------------------------------------------------------------


def run(world: int, folder: Path) -> list[dict[str, Any]]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "MFU_GUARD": "raise"}
    command = [sys.executable, __file__, str(folder)]
    running = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=900)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [0] * world, "\n".join(said)[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(4, tmp_path_factory.mktemp("four"))


def shared(ranks: list[dict[str, Any]], act: str) -> dict[str, Any]:
    """The record of `act`, which must be the same on all ranks that took part."""
    first, *others = [rank[act] for rank in ranks if act in rank]
    assert isinstance(first, dict), first
    assert all(other == first for other in others)
    return first


def check_rates(record: dict[str, Any], over: dict[str, tuple[int, int, str]]) -> None:
    """Each collective over the ranks, groups and links of `over`: positive, finite, inside of their intervals."""
    assert set(record["rates"]) == {f"{name}/{each}" for name in COLLECTIVES for each in over}
    for key, rate in record["rates"].items():
        ranks, groups, link = over[rate["over"]]
        assert key == f"{rate['collective']}/{rate['over']}"
        assert (rate["ranks"], rate["groups"], rate["link"], rate["backend"]) == (ranks, groups, link, "gloo")
        sizes = [time["size_bytes"] for time in rate["times"]]
        assert len(sizes) >= 2
        assert sizes == sorted(set(sizes))
        # The same number of elements on each rank, and no fewer than were asked for.
        assert all(
            size % (4 * ranks) == 0 and 0 <= size - (1 << 10 + 3 * i) < 4 * ranks for i, size in enumerate(sizes)
        )
        for time in rate["times"]:
            assert 0 < time["low_s"] <= time["seconds"] <= time["high_s"] < float("inf")
            assert time["batches"] >= 7
        bus = rate["bus"]
        assert 0 < bus["low"] <= bus["flops_per_s"] <= bus["high"] < float("inf")
        # S/t with both medians: they are of the same batches, whose middle may lie between two.
        largest = rate["times"][-1]
        factor = bus_factor(rate["collective"], ranks) * largest["size_bytes"]
        if largest["batches"] % 2:
            assert bus["flops_per_s"] == pytest.approx(factor / largest["seconds"])
        assert factor / largest["high_s"] <= bus["flops_per_s"] <= factor / largest["low_s"]


def test_two_ranks_of_a_host(two: list[dict[str, Any]]) -> None:
    """One group, of both ranks; what joins them is not known further than that it is the host."""
    record = shared(two, "plain")
    check_rates(record, {"host": (2, 1, "host")})
    assert record["missing"] is None
    assert record["state"] == {"backend": "gloo", "device": "cpu", "ranks": 2.0, "hosts": 1.0}


def test_four_ranks_of_a_host(four: list[dict[str, Any]]) -> None:
    """One group, of all four."""
    check_rates(shared(four, "plain"), {"host": (4, 1, "host")})


def test_two_hosts(four: list[dict[str, Any]]) -> None:
    """Both hosts' ranks at the same time, the first of each, and all, though rank 1 and 3 are not in the second."""
    record = shared(four, "two hosts")
    check_rates(record, {"host": (2, 2, "host"), "network": (2, 1, "network"), "all": (4, 1, "network")})
    assert record["state"]["hosts"] == 2.0


def test_unequal_hosts(four: list[dict[str, Any]]) -> None:
    """Three ranks of one host, while the rank that is alone on its own waits and agrees."""
    record = shared(four, "unequal hosts")
    check_rates(record, {"host": (3, 1, "host"), "network": (2, 1, "network"), "all": (4, 1, "network")})


def test_links_of_devices(four: list[dict[str, Any]]) -> None:
    """Each host's ranks ask about their own devices; the weakest edge of all groups is the link."""
    record = shared(four, "links")
    assert {rate["link"] for rate in record["rates"].values() if rate["over"] == "host"} == {"system"}


@pytest.mark.parametrize("world", ["two", "four"])
def test_a_given_group(world: str, request: pytest.FixtureRequest) -> None:
    """Only its ranks come, and only it is measured: ranks 1 to 3 of four, both of two."""
    ranks = request.getfixturevalue(world)
    check_rates(shared(ranks, "given group"), {"host": (2 if world == "two" else 3, 1, "host")})


def test_the_slowest_rank_counts(two: list[dict[str, Any]]) -> None:
    """A rank that sleeps 20 ms after each call makes each call take that long, on the record of the other one too.

    The bus rate falls to what the message's bytes are in that time, and below that of the undisturbed ranks.
    """
    plain, slow = shared(two, "given group"), shared(two, "slow")
    slow_s = two[0]["slowed by"]
    assert two[1]["slowed by"] == slow_s
    for key, rate in slow["rates"].items():
        assert all(time["seconds"] >= slow_s for time in rate["times"])
        largest = rate["times"][-1]["size_bytes"]
        at_most = bus_factor(rate["collective"], 2) * largest / slow_s
        assert rate["bus"]["flops_per_s"] <= at_most
        [quick] = [each["seconds"] for each in plain["rates"][key]["times"] if each["size_bytes"] == 1024]
        assert rate["times"][0]["seconds"] / quick > 1


def test_a_wrong_result_on_one_rank(two: list[dict[str, Any]]) -> None:
    """One number too high on one rank, at a size beyond the first: no rate, on any rank."""
    for rank in two:
        assert rank["wrong on one"].startswith(
            "CalibrationError: all_reduce over 2 ranks (host) of 8192 bytes is wrong"
        )


def test_a_wrong_reduction(two: list[dict[str, Any]]) -> None:
    """The maximum where the sum was asked for."""
    for rank in two:
        assert rank["wrong on all"].startswith("CalibrationError: all_reduce over 2 ranks (host) is wrong on rank 0, 1")


def test_a_rank_that_gives_up(two: list[dict[str, Any]]) -> None:
    """Its error is its own; the other one says whose it was and does not hang."""
    other, own = (rank["gives up"] for rank in two)
    assert other.startswith("CalibrationError")
    assert "rank 1 gave up: no more of this" in other
    assert "no more of this" in own


def test_what_the_backend_has_not(two: list[dict[str, Any]]) -> None:
    """It is missing by the backend's own word, and the others are measured."""
    record = shared(two, "not supported")
    assert sorted(record["rates"]) == ["all_gather/host", "all_reduce/host", "reduce_scatter/host"]
    assert record["missing"] == "all_to_all over 2 ranks (host): ProcessGroup does not support alltoall"


def test_an_absent_rank_is_named(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    """All that came say who did not, within the bound that they were given, rank 0 or another one."""
    rule = "did not come within {:g} s: measuring collectives takes all ranks; call it on each of them"
    of_two, of_four = (rule.format(SHORT_WAIT_S[world]) for world in (2, 4))
    assert two[0]["absent"] == f"CalibrationError: rank 1 of 2 {of_two}"
    assert two[1]["rank 0 absent"] == f"CalibrationError: rank 0 of 2 {of_two}"
    for rank in (0, 1, 3):
        assert four[rank]["absent"] == f"CalibrationError: rank 2 of 4 {of_four}"


@pytest.mark.parametrize("act", ["after absent", "after rank 0 absent"])
def test_all_come_again(act: str, two: list[dict[str, Any]]) -> None:
    """A roll call that one rank has missed puts nobody out of step for the next."""
    check_rates(shared(two, act), {"host": (2, 1, "host")})


def test_unequal_arguments(two: list[dict[str, Any]]) -> None:
    """Both values, on both ranks, and the rule."""
    for rank in two:
        assert (
            "rank 1 measures with [budget_s, wait_s, device, backend] = [0.8, 30.0, 'cpu', 'gloo']"
            in rank["other budget"]
        )
        assert "call it with the same on all ranks" in rank["other budget"]


@pytest.mark.parametrize("world", ["two", "four"])
def test_the_user_is_undisturbed(world: str, request: pytest.FixtureRequest) -> None:
    """Random state, defaults and the number of groups are as before, and the user's groups work, errors or not."""
    for rank in request.getfixturevalue(world):
        assert rank["undisturbed"] is True
        assert rank["groups work"] is True


def test_one_rank_has_no_collectives() -> None:
    """An empty result, with the reason."""
    import torch.distributed as dist

    from mfu_sdk.peak.collectives import measure

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = measure()
    finally:
        dist.destroy_process_group()
    assert found.rates == {}
    assert found.missing == "a group of one rank has no collectives: start more ranks"


def test_no_process_group() -> None:
    """The remedy is named before anything is measured; so are budgets that cannot be."""
    from mfu_sdk.errors import ConfigurationError
    from mfu_sdk.peak.collectives import measure

    with pytest.raises(ConfigurationError, match="no process group is up; call torch"):
        measure()


def test_calibrate_asks_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyword without a process group is refused before the device is measured."""
    import mfu_sdk as mfu
    from mfu_sdk.errors import ConfigurationError
    from mfu_sdk.peak import cpu

    monkeypatch.setattr(cpu, "measure", lambda *_: pytest.fail("the device was measured"))
    with pytest.raises(ConfigurationError, match="no process group is up"):
        mfu.calibrate("cpu", collectives=True)


def mfu_calibrate(*launcher: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "-m", "mfu_sdk.cli", "calibrate", "--device", "cpu", "--budget", "0.5", "--json", *options]
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    env |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, env=env, check=False)


def test_under_torchrun() -> None:
    """Rank 0 prints, once; what was measured is kept, and a calibration without collectives keeps it."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = mfu_calibrate(*torchrun, options=("--collectives",))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sorted(told["collectives"]) == sorted(f"{name}/host" for name in COLLECTIVES)
    assert told["achievable"]["float32"]["flops_per_s"] > 0
    later = json.loads(mfu_calibrate().stdout)
    assert later["calibration_id"] != told["calibration_id"]
    for name, rate in later["collectives"].items():
        assert rate["times"] == told["collectives"][name]["times"]
        assert rate["bus"]["bytes_per_s"] == told["collectives"][name]["bus"]["bytes_per_s"]


def test_without_a_launcher() -> None:
    """The variables that are missing are named, and how to start."""
    done = mfu_calibrate(options=("--collectives",))
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("mfu: collectives: RANK, WORLD_SIZE")
    assert "torchrun --nproc-per-node=8 --no-python mfu calibrate --collectives" in line


if __name__ == "__main__":
    # torch's own: gloo's groups of processors are made without a device id.
    warnings.simplefilter("ignore")
    be_a_rank(Path(sys.argv[1]))
