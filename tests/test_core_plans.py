"""Plans interrupted everywhere; placement; overlay chains and garbage."""

import json
from dataclasses import replace

import pytest

from ftkvm.core.chain import ChainLimits, EpochImages, Side, garbage, overlay_path, parse_overlay, plan_chain
from ftkvm.core.facts import DatastoreState, PairRecord
from ftkvm.core.placement import HostFacts, Refusal, Room, VmNeeds, choose_secondary, lacking
from ftkvm.core.plan import Finished, Journal, NeedsObservation, Plan, Run, Step, Undo, Where, next_move


def _step(name: str, undo: bool = True) -> Step:
    return Step(name, Where.PRIMARY, name, f"do-{name}", f"is-{name}", f"undo-{name}" if undo else None)


PLAN = Plan("protect", (_step("a"), _step("b"), _step("c", undo=False), _step("d")), commit="c")


class Machine:
    """Runs a plan on a world that is a set of things that are so; dies after a given number of writes and commands."""

    def __init__(self, dies_after: int) -> None:
        self.so: set[str] = set()
        self.stored = Journal(PLAN.kind, 7)
        self.left = dies_after

    def _live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def run(self, journal: Journal) -> bool:
        observed: dict[str, bool] = {}
        for _ in range(40):
            move = next_move(PLAN, journal, observed)
            observed = {}
            if isinstance(move, Finished):
                return move.done
            if isinstance(move, NeedsObservation):
                observed = {move.step.proves: move.step.proves in self.so}
                continue
            if isinstance(move, Run):
                self._live()
                journal = self.stored = journal.begin(move.step)
                self._live()
                self.so.add(move.step.proves)
                self._live()
                journal = self.stored = journal.finish(move.step)
            else:
                assert isinstance(move, Undo)
                self._live()
                self.so.discard(move.step.proves)
                self._live()
                journal = self.stored = journal.undone(move.step)
        raise AssertionError("the plan never ends")


@pytest.mark.parametrize("second", range(10))
@pytest.mark.parametrize("first", range(13))
def test_killed_anywhere_twice_it_ends_done_or_undone(first: int, second: int) -> None:
    machine = Machine(first)
    try:
        machine.run(machine.stored)
    except KeyboardInterrupt:
        machine.left = second
        try:
            machine.run(machine.stored.resumed())
        except KeyboardInterrupt:
            machine.left = 99
            machine.run(machine.stored.resumed())
    assert machine.so in ({f"is-{name}" for name in "abcd"}, set())


def test_failure_before_the_commit_point_undoes_in_reverse() -> None:
    journal = Journal("protect", 7).begin(PLAN.steps[0]).finish(PLAN.steps[0]).begin(PLAN.steps[1]).fail("no answer")
    assert next_move(PLAN, journal, {}) == Undo(PLAN.steps[1])
    assert next_move(PLAN, journal.undone(PLAN.steps[1]), {}) == Undo(PLAN.steps[0])


def test_the_commit_points_outcome_is_observed_first() -> None:
    journal = Journal("protect", 7)
    for step in PLAN.steps[:2]:
        journal = journal.begin(step).finish(step)
    journal = journal.begin(PLAN.steps[2]).resumed()
    assert next_move(PLAN, journal, {}) == NeedsObservation(PLAN.steps[2])
    assert next_move(PLAN, journal, {"is-c": True}) == Run(PLAN.steps[3])
    assert next_move(PLAN, journal, {"is-c": False}) == Undo(PLAN.steps[1])


def test_journal_survives_json() -> None:
    journal = Journal("protect", 7).begin(PLAN.steps[0]).fail("interrupted")
    assert Journal.from_json(json.loads(json.dumps(journal.to_json()))) == journal


def test_a_plan_without_its_commit_point_is_refused() -> None:
    with pytest.raises(ValueError, match="commit"):
        Plan("protect", (_step("a"),), commit="z")


HOST = HostFacts("a", True, DatastoreState.OK, "11.1.3", "11.3.0", "cpu", 4000, bridges=frozenset({"br-vm"}))
VM = VmNeeds("vm1", "a", 1000, frozenset({"br-vm"}))


def test_most_free_memory_wins_and_never_the_primarys_host() -> None:
    hosts = [replace(HOST, free_memory_mb=9000), replace(HOST, name="b"), replace(HOST, name="c", free_memory_mb=5000)]
    choice = choose_secondary(hosts, VM)
    assert choice.host == "c"
    assert choice.refusals["a"] == (Refusal.PRIMARY_HOST,)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"alive": False}, Refusal.NOT_ALIVE),
        ({"datastore": DatastoreState.HUNG}, Refusal.DATASTORE),
        ({"qemu_version": "10.0"}, Refusal.QEMU_VERSION),
        ({"libvirt_version": "10.0"}, Refusal.LIBVIRT_VERSION),
        ({"cpu": "other"}, Refusal.CPU),
        ({"maintenance": True}, Refusal.MAINTENANCE),
        ({"bridges": frozenset()}, Refusal.NETWORK),
        ({"ft_reached": False}, Refusal.FT_NETWORK),
        ({"free_memory_mb": 1500}, Refusal.MEMORY),
    ],
)
def test_each_refusal(change: dict[str, object], why: Refusal) -> None:
    choice = choose_secondary([HOST, replace(HOST, name="b", **change)], VM)  # type: ignore[arg-type]
    assert choice.host is None
    assert choice.refusals["b"] == (why,)


GIB = 1 << 30


@pytest.mark.parametrize(("room", "lacks"), [
    ({"/a": Room(1, 3 * GIB), "/b": Room(2, GIB)}, []),
    ({"/a": Room(1, 3 * GIB), "/b": Room(1, 3 * GIB)}, []),
    ({"/a": Room(1, 3 * GIB - 1), "/b": Room(1, 3 * GIB - 1)},
     ["/a, /b: 3071 MiB free, whole copies may need 3072 MiB"]),
    ({"/a": Room(1, GIB), "/b": Room(2, GIB)}, ["/a: 1024 MiB free, whole copies may need 2048 MiB"]),
    ({"/a": Room(1, 2 * GIB), "/b": None}, ["there is no directory /b"]),
    ({"/a": Room(1, 0)}, ["there is no directory /b", "/a: 0 MiB free, whole copies may need 2048 MiB"]),
])  # fmt: skip
def test_room_for_whole_copies(room: dict[str, Room | None], lacks: list[str]) -> None:
    needs = replace(VM, copies={"/a": 2 * GIB, "/b": GIB})
    assert lacking(room, needs.copies) == lacks
    choice = choose_secondary([HOST, replace(HOST, name="b", room=room)], needs)
    assert (choice.host, choice.refusals["b"]) == (("b", ()) if not lacks else (None, (Refusal.DISK_ROOM,)))


def test_a_host_whose_room_is_not_known_is_asked_when_it_comes_to_it() -> None:
    assert choose_secondary([HOST, replace(HOST, name="b")], replace(VM, copies={"/a": GIB})).host == "b"


def test_excluded_host() -> None:
    assert choose_secondary([HOST, replace(HOST, name="b")], VM, exclude={"b"}).refusals["b"] == (Refusal.EXCLUDED,)


BASE = "/srv/vm1.qcow2"


def _overlay(epoch: int, side: Side) -> str:
    return overlay_path(BASE, epoch, side)


def test_overlay_names() -> None:
    name = _overlay(7, Side.SECONDARY)
    assert name == "/srv/vm1.qcow2.ft-7-s.qcow2"
    overlay = parse_overlay(name)
    assert overlay is not None and (overlay.base, overlay.epoch, overlay.side) == (BASE, 7, Side.SECONDARY)
    assert overlay_path(name, 8, Side.PRIMARY) == _overlay(8, Side.PRIMARY)
    assert parse_overlay(BASE) is None


def test_chain_is_frozen_reused_or_merged() -> None:
    big, limits = 10**9, ChainLimits(max_depth=3)
    one, two = _overlay(1, Side.PRIMARY), _overlay(2, Side.SECONDARY)
    assert plan_chain([BASE], big, limits).snapshot
    assert plan_chain([one, BASE], 1000, limits).shared == BASE
    assert not plan_chain([one, BASE], 1000, limits).snapshot
    assert plan_chain([one, BASE], big, limits).shared == one
    assert plan_chain([two, one, BASE], big, limits).merge_first


def test_the_chain_never_grows_beyond_its_bound() -> None:
    chain, limits = [BASE], ChainLimits(max_depth=4)
    for epoch in range(1, 30):
        plan = plan_chain(chain, 10**9, limits)
        if plan.merge_first:
            chain = [plan.shared]
            plan = plan_chain(chain, 10**9, limits)
            assert not plan.merge_first
        chain = [_overlay(epoch, Side.PRIMARY), *chain]
        assert len(chain) <= limits.max_depth


def test_garbage_keeps_what_a_live_record_names() -> None:
    p1, s1, h1, a1 = (_overlay(1, side) for side in Side)
    p2, s2, h2, a2 = (_overlay(2, side) for side in Side)
    other, newer = "/srv/vm2.qcow2.ft-1-p.qcow2", _overlay(3, Side.SECONDARY)
    files = [BASE, p1, s1, h1, a1, p2, s2, h2, a2, other, newer]
    ended = EpochImages(PairRecord(1, "x", "y"), frozenset({p1}), frozenset({s1}), winner="y")
    live = EpochImages(PairRecord(2, "y", "z"), frozenset({p2}), frozenset({s2}), winner=None)
    chain = [p2, s1, BASE]
    assert garbage(files, [chain], [ended, live], operation_running=False) == {p1, h1, a1}
    assert garbage(files, [[s1, BASE]], [ended], operation_running=False) == {p1, h1, a1}
    assert garbage(files, [[BASE]], [ended], operation_running=False) == {p1, h1, a1}, (
        "the winner's image may be needed"
    )
    assert not garbage(files, [chain], [ended, live], operation_running=True)
    assert not garbage(files, [], [ended, live], operation_running=False)
