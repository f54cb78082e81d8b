"""Which ranks are measured together, and what the link between them is called."""

import pytest

from mfu_sdk.peak.placing import Seat, Span, by_host, edges, spans, weakest


def seats(*hosts: str) -> list[Seat]:
    return [Seat(rank, host, f"GPU-{rank}") for rank, host in enumerate(hosts)]


def test_two_hosts_of_two() -> None:
    """The ranks of each host at the same time, the first of each, and all; the weakest edge names each."""
    found, missing = spans(seats("a", "a", "b", "b"), {"a": "nvlink", "b": "host-bridge"})
    assert found == (
        Span("host", ((0, 1), (2, 3)), "host-bridge"),
        Span("network", ((0, 2),), "network"),
        Span("all", ((0, 1, 2, 3),), "network"),
    )
    assert missing is None
    assert [found[0].group_of(rank) for rank in (1, 2)] == [(0, 1), (2, 3)]
    assert found[1].group_of(3) is None


def test_interleaved_ranks() -> None:
    """Hosts are told by their identity, not by runs of ranks."""
    found, _ = spans(seats("a", "b", "a", "b"), {"a": "host", "b": "host"})
    assert [span.groups for span in found] == [((0, 2), (1, 3)), ((0, 1),), ((0, 1, 2, 3),)]


def test_one_host_is_measured_once() -> None:
    """All ranks of the only host are the host's: no second group of the same."""
    assert spans(seats("a", "a", "a"), {"a": "nvlink"}) == ((Span("host", ((0, 1, 2),), "nvlink"),), None)


def test_one_rank_a_host_is_measured_once() -> None:
    """Groups of one rank are none, and one rank of each host is all ranks."""
    assert spans(seats("a", "b"), {"a": "host", "b": "host"}) == ((Span("network", ((0, 1),), "network"),), None)


def test_one_rank_has_no_group() -> None:
    """Nothing to measure."""
    assert spans(seats("a"), {"a": "host"}) == ((), None)


def test_unequal_hosts() -> None:
    """A bus rate holds for a number of ranks: the hosts with the most are measured, and the others said."""
    found, missing = spans(seats("a", "a", "a", "b", "b", "c"), {"a": "nvlink", "b": "board", "c": "host"})
    assert found[0] == Span("host", ((0, 1, 2),), "nvlink")
    assert found[1].groups == ((0, 3, 5),)
    assert missing is not None
    assert "hosts with 2 ranks are not measured on their own: others have 3" in missing


def test_a_group_that_cannot_be_taken_apart() -> None:
    """All of its ranks, and the network if they are on several hosts."""
    apart = spans(seats("a", "a", "b"), {"a": "nvlink", "b": "host"}, apart=False)
    assert apart == ((Span("all", ((0, 1, 2),), "network"),), None)
    same = spans(seats("a", "a"), {"a": "nvlink"}, apart=False)
    assert same == ((Span("host", ((0, 1),), "nvlink"),), None)


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        (["nvlink", "nvlink"], "nvlink"),
        (["nvlink", "host-bridge", "nvlink"], "host-bridge"),
        # One edge that is not known may be the weakest.
        (["nvlink", None], "host"),
        ([None], "host"),
        ([], "host"),
        (["xgmi"], "xgmi"),
        # Which of two kinds is weaker is known of the known ones only.
        (["xgmi", "board"], "host"),
        (["pcie-switch", "system", "board"], "system"),
        (["host", "board"], "host"),
    ],
)
def test_the_weakest_edge(kinds: list[str | None], name: str) -> None:
    """Unknown stays unknown."""
    assert weakest(kinds) == name


def test_edges_are_pairs_of_devices() -> None:
    """Each pair of one host's devices once; a processor has no UUID, so its pairs are not known."""
    assert edges(seats("a", "a", "a")) == [("GPU-0", "GPU-1"), ("GPU-0", "GPU-2"), ("GPU-1", "GPU-2")]
    assert edges([Seat(0, "a", None), Seat(1, "a", "GPU-1")]) == [None]
    assert list(by_host([Seat(1, "b", None), Seat(0, "a", None)])) == ["a", "b"]
