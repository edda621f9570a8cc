"""The processes of a run, with the others played: who is waited for, who counts as dead, and what is merged."""

import threading
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from vit_analysis.reading import processes
from vit_analysis.reading.processes import BEAT, GONE, Company
from vit_analysis.reading.state import Sums

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Moments(Sums):
    total: Tensor
    count: Tensor
    of: str = "x"


ONE = Moments(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(3))
OTHER = Moments(torch.tensor([10.0, 20.0, 30.0]), torch.tensor(4))


class Store:
    """What processes share; ``gone`` is where the process that holds it has died."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self.gone = False

    def _there(self) -> None:
        if self.gone:
            raise RuntimeError("broken")

    def set(self, name: str, value: str) -> None:
        self._there()
        self.kept[name] = value.encode()

    def get(self, name: str) -> bytes:
        return self.kept[name]

    def add(self, name: str, count: int) -> int:
        self._there()
        self.counts[name] = self.counts.get(name, 0) + count
        return self.counts[name]

    def check(self, names: list[str]) -> bool:
        return all(name in self.kept for name in names)

    def multi_get(self, names: list[str]) -> list[bytes]:
        self._there()
        return [self.kept[name] for name in names]


@pytest.fixture
def company(monkeypatch):
    """Process 1 of 3, and how long it slept each time; ``tick`` is what the others do meanwhile."""
    monkeypatch.setattr(processes, "rank_and_size", lambda: (1, 3))
    own = Company()
    own.store, own.slept, own.tick = Store(), [], lambda _: None

    def sleep(seconds: float) -> None:
        own.slept.append(seconds)
        own.tick(len(own.slept))

    monkeypatch.setattr(processes.time, "sleep", sleep)
    return own


# Merging ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [ONE, None])
@pytest.mark.parametrize("other", [OTHER, None])
def test_sums_of_all_processes_are_added_and_nobody_s_own_are_changed(own, other, monkeypatch):
    """In another process nothing may count; the sums of the others are then all."""
    before = None if own is None else replace(own, total=own.total.clone(), count=own.count.clone())
    names = iter(ONE.tensors())

    def gather(shapes: list, mine) -> None:
        theirs = other and processes._Shape(
            Moments,
            {name: (value.shape, value.dtype) for name, value in other.tensors().items()},
            other.labels(),
        )
        assert len(shapes) == 2
        shapes[:] = [mine, theirs]

    def reduce(tensor: Tensor) -> None:
        name = next(names)
        if other:
            tensor += other.tensors()[name]

    monkeypatch.setattr(processes, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    monkeypatch.setattr(processes.dist, "all_reduce", reduce)
    found = processes.over_processes(own, CPU)
    told = [one for one in (before, other) if one]
    if not told:
        assert found is None
        return
    assert isinstance(found, Moments)
    assert found.of == "x"
    for name, value in found.tensors().items():
        expected = sum(one.tensors()[name] for one in told)
        assert torch.equal(value, expected)
        assert value.dtype == expected.dtype
    if own:
        assert all(torch.equal(value, before.tensors()[name]) for name, value in own.tensors().items())


def test_one_process_alone_has_its_sums_as_they_are():
    assert processes.rank_and_size() == (0, 1)
    assert processes.over_processes(ONE, CPU) is ONE
    assert processes.over_processes(None, CPU) is None


def test_a_broken_connection_is_said_in_a_sentence(company, monkeypatch):
    monkeypatch.setattr(processes, "company", company)
    for trouble, said in (
        (None, r"another process ended \(reset by peer\)"),
        ("process 2 failed: odd", "process 2 failed: odd"),
    ):
        company.trouble = trouble
        with pytest.raises(ConnectionError, match=f"^{said}$"), processes._heard():
            raise RuntimeError("reset by peer")


# Joining and leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "backend", "device"), [(True, "cpu:gloo,cuda:nccl", [2]), (False, "gloo", [])]
)
def test_each_process_has_its_own_gpu_where_there_are_some(cuda, backend, device, monkeypatch):
    joined, chosen = [], []
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(processes.company, "join", joined.append)
    processes.join()
    assert (joined, chosen) == ([backend], device)
    monkeypatch.delenv("LOCAL_RANK")
    processes.join()
    assert chosen == device + [0] * cuda


def test_whoever_joins_gives_a_sign_of_life_before_others_listen_and_leaves_once(company, monkeypatch):
    store, done, started = company.store, [], []
    company.store = None
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend: done.append(backend))
    monkeypatch.setattr(processes.dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(processes.dist, "barrier", lambda: done.append(dict(store.kept)))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: done.append("left"))

    class Thread(threading.Thread):
        def start(self) -> None:
            started.append((self.daemon, self._target))

    monkeypatch.setattr(processes.threading, "Thread", Thread)
    company.leave()  # who has not joined has nothing to leave
    assert done == []
    company.join("gloo")
    assert done == ["gloo", {"alive 1": b"0"}]
    assert started == [(True, company._listen)]  # no thread keeps the process from ending
    company.leave()
    assert done[2:] == [{"alive 1": b"0"}, "left"]
    assert company.store is None
    company.leave()
    assert len(done) == 4


def test_the_first_to_fail_says_so_and_who_only_heard_of_it_does_not(company):
    store = company.store
    company.trouble = "process 2 failed: odd"
    company.fail("consequence")
    assert store.kept == {}
    with pytest.raises(ConnectionError, match=r"^process 2 failed: odd$"):
        company.heed()
    company.trouble = None
    company.heed()
    company.fail("mine")
    assert store.kept == {"failed": b"process 1 failed: mine"}
    store.gone = True
    company.fail("nobody hears it")
    company.store = None
    company.fail("alone")


# Waiting ---------------------------------------------------------------------------------------------------------------------


def test_a_meeting_ends_when_all_have_come_and_looks_less_and_less_often(company):
    def others(look: int) -> None:
        if look in (3, 14):
            company.store.add(f"meeting {company.meetings}", 1)

    company.tick = others
    company.meet()
    assert company.slept == [min(0.001 * 2**number, BEAT) for number in range(14)]
    assert company.slept[-1] == BEAT
    company.slept.clear()
    company.meet()  # another one
    assert len(company.slept) == 14
    assert company.store.counts == {"meeting 1": 3, "meeting 2": 3}


@pytest.mark.parametrize(
    ("what", "said"),
    [("trouble", "process 2 failed: odd"), ("gone", GONE), ("both", "process 2 failed: odd")],
)
def test_nobody_waits_for_a_process_that_does_not_come(company, what, said):
    def end(look: int) -> None:
        if look == 5:
            company.trouble = "process 2 failed: odd" if what != "gone" else None
            company.store.gone = what != "trouble"

    company.tick = end
    with pytest.raises(ConnectionError, match=f"^{said}$"):
        company.meet()
    assert len(company.slept) == 5


def test_who_was_joined_by_others_does_not_wait(company):
    company.store = None
    company.meet()
    assert (company.slept, company.meetings) == ([], 0)


# Signs of life ---------------------------------------------------------------------------------------------------------------


def listened(company: Company, others) -> int:
    """Listen until something ends it; return how many beats there were."""
    store = company.store
    store.kept |= {f"alive {rank}": b"0" for rank in range(3)}
    own = []

    def tick(beat: int) -> None:
        own.append(store.kept["alive 1"])
        others(beat)

    company.tick = tick
    company._listen()
    assert own == [str(number).encode() for number in range(len(own))]  # this one's own
    assert set(company.slept) == {BEAT}
    return len(own)


@pytest.mark.parametrize(("silent", "last"), [(0, 0), (2, 0), (2, 7)])
def test_a_process_that_is_silent_for_longer_than_allowed_counts_as_dead(company, silent, last, monkeypatch):
    monkeypatch.setattr(processes, "SILENCE", 5.0)

    def others(beat: int) -> None:
        for rank in (0, 2):
            if rank != silent or beat <= last:
                company.store.set(f"alive {rank}", str(beat))

    assert listened(company, others) == last + 6  # five seconds of silence are allowed
    assert company.trouble == f"no sign of life from process {silent} for 5 seconds"


def test_a_process_that_comes_back_in_time_lives_and_the_end_ends_it(company, monkeypatch):
    monkeypatch.setattr(processes, "SILENCE", 5.0)

    def others(beat: int) -> None:
        company.store.set("alive 0", str(beat))
        if beat % 5 == 0:  # every fifth beat, ten times: silences do not add up
            company.store.set("alive 2", str(beat))
        if beat == 50:
            company.store = None

    assert listened(company, others) == 50
    assert company.trouble is None


def test_the_failure_of_another_is_heard_at_the_next_beat_and_a_store_that_is_gone_too(company):
    def fails(beat: int) -> None:
        if beat == 3:
            company.store.set("failed", "process 0 failed: odd")

    assert listened(company, fails) == 3
    assert company.trouble == "process 0 failed: odd"
    company.store, company.slept = Store(), company.slept
    company.slept.clear()

    def dies(beat: int) -> None:
        company.store.gone = beat == 2

    assert listened(company, dies) == 2
    assert company.trouble == GONE
