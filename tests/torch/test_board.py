"""The board: what ranks post and read in a store that may be late, silent or gone."""

import threading
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist

from mfu_sdk.ranks import Counted, RankTotals
from mfu_sdk.records import Peaks, RunIdentity
from mfu_sdk.run import board
from mfu_sdk.run.board import Board
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.costs import Costs
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.standing import LISTEN_S, Standing


def identity(rank: int, world_size: int = 3) -> RunIdentity:
    return RunIdentity("run", 0, "work", None, rank, None, world_size, "cpu", None, None, 0)


def totals(rank: int, steps: int = 5, *, closed: bool = False) -> RankTotals:
    counted = Counted(4, 2**70, "alike", steady=True)
    return RankTotals(rank, 4, steps, 2, 1.5, 2**70, 2**71, 1e30, 7, 0.5, 0.25, 0.125, counted, closed)


def settled(of: Board) -> None:
    """Wait for what was asked without waiting."""
    if of._asking is not None:
        of._asking.join()


def test_what_one_posts_the_others_read() -> None:
    """To the FLOP, beyond 64 bits; a rank that has posted nothing is not heard of."""
    store = dist.HashStore()
    first, second = Board(store, identity(0)), Board(store, identity(1))
    first.post(totals(0))
    settled(first)
    seen = second.read(totals(1))
    assert seen.ranks == (totals(0), totals(1))
    assert seen.world_size == 3
    assert first.known().ranks == (totals(0),)
    assert first.latest().ranks == (totals(0), totals(1))


def test_another_attempt_is_another_board() -> None:
    store = dist.HashStore()
    Board(store, identity(0)).read(totals(0))
    again = RunIdentity("run", 1, "work", None, 1, None, 3, "cpu", None, None, 0)
    assert Board(store, again).read(totals(1)).ranks == (totals(1),)


def test_the_last_word_of_others_is_waited_for() -> None:
    """Rank 1 closes while rank 0 looks for the third time; rank 2 never posted, and nobody waits for it."""
    store = dist.HashStore()
    other = Board(store, identity(1))
    other.read(totals(1))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            other.close(totals(1, 6, closed=True), wait=False)

    mine = Board(store, identity(0), sleep=sleep)
    assert mine.close(totals(0, closed=True), wait=True).ranks == (totals(0, closed=True), totals(1, 6, closed=True))
    assert slept == [0.002, 0.004]


def test_a_rank_that_goes_on_is_not_waited_for_longer() -> None:
    """Two seconds, in ever longer pauses; what it said before stands."""
    store = dist.HashStore()
    Board(store, identity(1)).read(totals(1))
    slept: list[float] = []
    mine = Board(store, identity(0), sleep=slept.append)
    assert mine.close(totals(0, closed=True), wait=True).ranks == (totals(0, closed=True), totals(1))
    assert board.OTHERS_S <= sum(slept) < board.OTHERS_S + 0.128
    assert mine.close(totals(0, closed=True), wait=False).ranks[1] == totals(1)


class Silent:
    """A store whose host is gone: it takes a question and never answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.reached, self.back = threading.Event(), threading.Event()

    def set(self, key: str, value: str) -> None:
        self.asked += 1
        self.reached.set()
        self.back.wait()

    def check(self, keys: list[str]) -> bool:
        return False


def test_a_silent_store_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A post returns at once, a reader waits as long as it may, and one question is all that is under way."""
    monkeypatch.setattr(board, "ANSWER_S", 0.05)
    monkeypatch.setattr(board, "OTHERS_S", 0.05)
    store = Silent()
    mine = Board(store, identity(0))  # type: ignore[arg-type]
    mine.post(totals(0))
    assert store.reached.wait(120)
    mine.post(totals(0, 6))
    assert mine.read(totals(0, 7)).ranks == (totals(0, 7),)
    assert mine.close(totals(0, 8, closed=True), wait=True).ranks == (totals(0, 8, closed=True),)
    assert store.asked == 1
    store.back.set()
    settled(mine)


def test_a_store_that_is_gone_is_asked_once() -> None:
    """Rank 0 has left, and its server with it: what was heard before is what is known."""

    class Gone:
        asked = 0

        def set(self, key: str, value: str) -> None:
            Gone.asked += 1
            raise dist.DistNetworkError("Broken pipe")

    mine = Board(Gone(), identity(0))  # type: ignore[arg-type]
    for steps in (5, 6, 7):
        assert mine.read(totals(0, steps)).ranks == (totals(0, steps),)
    assert Gone.asked == 1


def test_listening_while_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have posted is heard of soon, asked for once in a while, and no more once the last word is said.

    A rank that waited 0.3 s at the least, beside one that waited 0.125: the rest is for whoever is late.
    """
    store, now_s = dist.HashStore(), [0.0]
    Board(store, identity(1)).read(totals(1))
    books = Ledger(identity(0), Peaks("cpu", {}, {}, None, None, {}), HostClock())
    monkeypatch.setattr(Board, "open", classmethod(lambda cls, who: cls(store, who)))
    standing = Standing(books, Costs(books, "exact", has_model=False), lambda: now_s[0])
    assert standing.board is not None
    assert books.gathered.listen == standing.listen
    books.gathered.exchanged(0.3)
    waits = partial(books.gathered.waits_of, 10, 10.0, None, None, "train")
    standing.listen()
    settled(standing.board)
    assert (waits().communication_s, waits().skew_s) == (pytest.approx(3.0), pytest.approx(0.0))
    asked = standing.board._asking
    standing.listen()
    assert (waits().communication_s, waits().skew_s) == (pytest.approx(1.25), pytest.approx(1.75))
    assert standing.board._asking is asked
    now_s[0] = LISTEN_S
    standing.listen()
    settled(standing.board)
    assert standing.board._asking is not asked
    standing.at_the_end(10, wait=False)
    asked, now_s[0] = standing.board._asking, 9 * LISTEN_S
    standing.listen()
    assert standing.board._asking is asked


def test_in_a_large_world_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """n² keys twice a minute would be too much for the store's host."""
    monkeypatch.setattr(board, "MOST_LISTENERS", 2)
    mine = Board(dist.HashStore(), identity(0))
    mine.listen()
    assert mine._asking is None


def test_a_forked_child_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its parent's sockets."""
    store = dist.HashStore()
    mine = Board(store, identity(0))
    monkeypatch.setattr(mine, "_process", -1)
    mine.read(totals(0))
    assert store.num_keys() == 0


def test_all_when_complete_asks_no_more() -> None:
    """Behind the last word of every rank, nothing may come."""
    store = dist.HashStore()
    for rank in range(3):
        last = Board(store, identity(rank))
        last.close(totals(rank, closed=True), wait=False)
    assert last.known().complete
    asking = last._asking
    assert last.latest().complete
    assert last._asking is asking


def test_in_a_large_world_rank_0_alone_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In portions, one of which has a rank missing."""
    monkeypatch.setattr(board, "MOST_READERS", 4)
    monkeypatch.setattr(board, "_AT_ONCE", 2)
    store = dist.HashStore()
    for rank in (1, 2, 3, 5):
        Board(store, identity(rank, 6)).read(totals(rank))
    assert [each.rank for each in Board(store, identity(0, 6)).read(totals(0)).ranks] == [0, 1, 2, 3, 5]
    assert [each.rank for each in Board(store, identity(5, 6)).read(totals(5)).ranks] == [5]


def test_a_process_on_its_own_has_no_board() -> None:
    """Nor has one of several that share no store."""
    assert Board.open(identity(0, 1)) is None
    assert Board.open(identity(0, 3)) is None


def test_a_store_that_fails_to_open_leaves_the_run_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses() -> Any:
        raise RuntimeError("no answer within 5 s")

    monkeypatch.setattr(board, "key_store", refuses)
    assert Board.open(identity(0)) is None
    assert "other ranks are not known" in caplog.text
