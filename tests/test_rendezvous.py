"""Rounds of processes that find each other in a store that remembers the dead (threads stand for processes)."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsynth.processes import job_store, join_round, note_begun, was_begun

SECONDS = 20
"""A round that is not complete by then hangs."""


def round_of(store: dist.Store, size: int, order: list[int], pause: float = 0) -> list[dist.Store]:
    """What each process of a round gets, by rank, when they come in that order."""
    found: dict[int, dist.Store] = {}

    def come(rank: int) -> None:
        found[rank] = join_round(store, rank, size)

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in order]
    for thread in threads:
        thread.start()
        time.sleep(pause)
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(found) == list(range(size)), "some wait for ever"
    return [found[rank] for rank in range(size)]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 4).flatmap(lambda size: st.permutations(range(size))), min_size=1, max_size=3))
def test_each_round_has_a_store_of_its_own_whatever_the_order_and_number(orders: list[list[int]]) -> None:
    store = dist.HashStore()
    for number, order in enumerate(orders):
        stores = round_of(store, len(order), order)
        for each in stores:
            assert not each.check(["address"]), "an address of the dead"
        stores[0].set("address", str(number))
        assert {each.get("address").decode() for each in stores} == {str(number)}


def test_those_who_come_before_the_first_do_not_enter_the_round_of_the_dead() -> None:
    store = dist.HashStore()
    round_of(store, 3, [0, 1, 2])
    second = round_of(store, 3, [2, 1, 0], pause=0.3)
    second[0].set("address", "new")
    assert second[1].get("address") == second[2].get("address") == b"new"


def test_a_round_that_was_opened_and_lost_before_all_came_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    with monkeypatch.context() as patch:
        patch.setattr("robustsynth.processes.time.sleep", lambda _: sys.exit("killed while it waits"))
        with pytest.raises(SystemExit):
            join_round(store, 0, 2)
    assert store.check(["open"])
    stores = round_of(store, 2, [1, 0], pause=0.3)
    stores[0].set("address", "new")
    assert stores[1].get("address") == b"new"


@pytest.mark.parametrize("restarts", [0, 2])
def test_without_a_store_the_number_of_restarts_tells(monkeypatch: pytest.MonkeyPatch, restarts: int) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    assert job_store() is None
    note_begun()
    assert was_begun() == bool(restarts)


def test_the_store_of_a_job_remembers_that_its_work_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    server = dist.TCPStore("localhost", 0, is_master=True)
    for key, value in {"USE_AGENT_STORE": "True", "RUN_ID": "one", "RESTART_COUNT": "3"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{key}", value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    assert not was_begun(), "rounds that ended before they began do not count"
    note_begun()
    assert was_begun()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert not was_begun(), "another job"
