"""What ranks have done together: sums over sums, whose counts do not fit, and for whom the others wait."""

import pytest

from mfu_sdk.ranks import AllRanks, Counted, RankTotals


def rank(number: int, flops: int = 100, available: float = 1000.0, step: int = 4, **more: object) -> RankTotals:
    return RankTotals(number, step, 5, 2, 1.0, flops, 2 * flops, available, **more)  # type: ignore[arg-type]


def counting(*flops: int, alike: str = "a", step: int = 4, steady: bool = True) -> AllRanks:
    counted = [Counted(step, each, alike, steady) for each in flops]
    return AllRanks(len(flops), tuple(rank(number, counted=each) for number, each in enumerate(counted)))


def test_global_mfu_is_a_sum_over_a_sum() -> None:
    """100 of 1000 and 300 of 500: 400/1500, not the mean of 0.1 and 0.6."""
    both = AllRanks(2, (rank(0), rank(1, 300, 500.0)))
    assert both.mfu == pytest.approx(400 / 1500)
    assert both.hfu == pytest.approx(800 / 1500)
    assert (both.model_flops, both.available_flops) == (400, 1500.0)
    assert both.lowest is not None
    assert both.lowest.rank == 0
    assert [each.mfu for each in both.ranks] == [0.1, 0.6]


def test_a_rank_that_knows_nothing_is_in_neither_sum() -> None:
    """It has no peak: its FLOPs would stand over nobody's available ones."""
    both = AllRanks(2, (rank(0), rank(1, 300, 0.0)))
    assert both.mfu == pytest.approx(0.1)
    assert both.lowest is None
    nobody = AllRanks(2, ())
    assert (nobody.mfu, nobody.hfu, nobody.step, nobody.tokens, nobody.step_flops) == (None,) * 5
    assert str(nobody) == "unknown over 0 of 2 ranks"


def test_tokens_add_up_where_all_told_them() -> None:
    assert AllRanks(2, (rank(0, tokens=3), rank(1, tokens=4))).tokens == 7
    assert AllRanks(2, (rank(0, tokens=3), rank(1))).tokens is None


def test_how_far_and_how_many() -> None:
    """Of three ranks two were heard of, the slower one up to step 2."""
    heard = AllRanks(3, (rank(0, step=4), rank(2, step=2, closed=True)))
    assert (heard.step, heard.complete) == (2, False)
    assert str(heard) == "MFU 10 % over 2 of 3 ranks, up to step 2"
    closed = AllRanks(2, (rank(0, closed=True), rank(1, 50, closed=True)))
    assert closed.complete
    assert str(closed) == "MFU 7.5 % over 2 of 2 ranks, lowest 5 % on rank 1"


def test_ranks_sum_to_the_count_of_a_step() -> None:
    """Only where all have counted the same one."""
    assert counting(3, 4, 5).step_flops == 12
    assert AllRanks(2, counting(3).ranks).step_flops is None
    both = (*counting(3, step=4).ranks, *counting(4, step=8).ranks)
    assert AllRanks(2, both).step_flops is None


def test_equal_counts_need_no_note() -> None:
    assert counting(7, 7, 7).notes == ()


def test_a_rank_at_odds_is_named() -> None:
    """Against those with the same model, place and shapes, in the same step, whose count is always the same."""
    assert counting(7, 7, 9).notes == (
        "in step 4 ranks with the same model, place and shapes counted different FLOPs: 7 on ranks 0, 1, 9 on rank 2; "
        "one does work that the others do not, or its count is wrong",
    )
    assert counting(7, 7, 9, steady=False).notes == ()
    apart = [counting(7, alike="stage 0").ranks[0], counting(1, 9, alike="stage 1").ranks[1]]
    assert AllRanks(2, tuple(apart)).notes == ()
    other_step = [counting(7, step=4).ranks[0], counting(1, 9, step=8).ranks[1]]
    assert AllRanks(2, tuple(other_step)).notes == ()


def test_many_at_odds_are_counted() -> None:
    """Five of a kind are a number; of six kinds four are spelled out."""
    assert "1,000 on 5 ranks, 9 on rank 5" in counting(*[1000] * 5, 9).notes[0]
    assert ": 1 on rank 0, 2 on rank 1, 3 on rank 2, 4 on rank 3, …; one" in counting(1, 2, 3, 4, 5, 6).notes[0]


def test_a_rank_that_counts_nothing_is_named() -> None:
    """It may watch another module than the one that is trained."""
    apart = [counting(7).ranks[0], counting(1, 0, alike="other model").ranks[1]]
    assert AllRanks(2, tuple(apart)).notes == (
        "rank 1 counted no FLOPs in the last counted step, and others did: do they watch the model?",
    )
    assert counting(0, 0).notes == ()


def test_whom_the_others_wait_for() -> None:
    """It waits least itself: rank 1's 1 ms are the bytes, and the others wait 20 and 30 ms longer."""
    waits = [rank(0, exchange_s=0.021), rank(1, exchange_s=0.001), rank(2, exchange_s=0.031, exchange_least_s=0.0005)]
    three = AllRanks(3, tuple(waits))
    assert three.late == (1, pytest.approx(0.025))
    assert three.exchange_least_s == 0.0005
    # Steps of half a second.
    assert "the others wait 25 ms a step for rank 1" in str(three)
    little = AllRanks(2, (rank(0, exchange_s=0.001), rank(1, exchange_s=0.005)))
    assert little.late == (0, pytest.approx(0.004))
    assert "wait" not in str(little)
    assert AllRanks(3, tuple(waits[:2])).late is None
    assert AllRanks(1, (waits[0],)).late is None


def test_who_waits_longest_for_data() -> None:
    """Rank 0 has 60 ms a step, the others 10 and 20: 45 ms longer than their mean."""
    waits = [rank(0, data_wait_s=0.06), rank(1, data_wait_s=0.01), rank(2, data_wait_s=0.02)]
    assert AllRanks(3, tuple(waits)).starved == (0, pytest.approx(0.045))
    assert str(AllRanks(3, tuple(waits))).endswith("rank 0 waits 45 ms a step longer for data")
    assert AllRanks(3, (*waits[:2], rank(2))).starved is None
