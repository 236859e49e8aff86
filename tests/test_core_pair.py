"""The go-live rules: what must hold for every observation (hypothesis), and each rule once, by name."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkvm.core import pair as core
from ftkvm.core.facts import Observation, SecondarySilence
from ftkvm.core.pair import (
    DatastoreState,
    FtSettings,
    Operation,
    OperationPhase,
    PairRecord,
    PeerEvidence,
    PeerQemu,
    PeerSaid,
    QemuState,
    Role,
    Verdict,
    Winner,
    WinnerAbsent,
    WinnerUnknown,
    decide,
)
from ftkvm.core.reasons import MEANINGS, NOBODY_GOES_LIVE, Reason
from ftkvm.core.trouble import unnoticed_ms

TIMES = FtSettings()
HOSTS = ("a", "b", "c")
maybe_ms = st.none() | st.integers(0, 20_000)
epochs = st.integers(6, 8)
saids = st.builds(
    PeerSaid,
    epochs,
    st.sampled_from([Role.PRIMARY, Role.SECONDARY]),
    st.sampled_from(PeerQemu),
    st.none() | epochs,
    st.sampled_from(DatastoreState),
)
observations = st.builds(
    Observation,
    now_ms=st.just(100_000),
    me=st.sampled_from(HOSTS),
    boot_id=st.just("boot"),
    record=st.none() | st.just(PairRecord(7, "a", "b")),
    record_known=st.booleans(),
    winner=st.just(WinnerAbsent())
    | st.just(WinnerUnknown())
    | st.builds(Winner, st.sampled_from(HOSTS), st.sampled_from(Reason)),
    qemu=st.sampled_from(QemuState),
    qemu_epoch=st.none() | epochs,
    absent_ms=st.sampled_from([0, 60_000]),
    colo_exit_age_ms=maybe_ms,
    checkpoint_age_ms=maybe_ms,
    interval_ms=st.integers(50, 2000),
    replication_error=st.booleans(),
    own_disk_error=st.booleans(),
    hold_alive=st.booleans(),
    secondary_silence=st.none()
    | st.builds(SecondarySilence, st.integers(0, 20_000), st.integers(0, 40), st.integers(0, 40)),
    changed_outside=st.booleans(),
    patience_ms=st.sampled_from([0, 60_000]),
    peer=st.builds(PeerEvidence, st.sampled_from(Verdict), maybe_ms, st.none() | saids),
    datastore=st.sampled_from(DatastoreState),
    datastore_ok_ms=st.integers(0, 5000),
    operation=st.none()
    | st.builds(Operation, st.sampled_from(["protect", "turn-off"]), st.sampled_from(OperationPhase)),
    ft_enabled=st.booleans(),
)


def _kinds(decision: core.Decision) -> set[type]:
    return {type(action) for action in decision.actions}


@settings(max_examples=3000, deadline=None)
@given(observations)
def test_invariants_of_every_decision(obs: Observation) -> None:
    decision = decide(obs, TIMES)
    kinds = _kinds(decision)
    live = bool(kinds & {core.GoLive, core.GoOnAlone})
    assert decision.actions
    assert decision.reason in MEANINGS
    assert decision.recheck_ms is None or decision.recheck_ms > 0
    if live:
        assert isinstance(obs.winner, Winner) and obs.winner.host == obs.me, "nobody goes live unless the file names it"
        assert obs.winner.reason not in NOBODY_GOES_LIVE, "nor after a guest's power-off or a cold restart"
        assert not kinds & {core.Arbitrate, core.DestroyOwn, core.EndEpochShutdown}
    if core.GoLive in kinds:
        assert obs.qemu is QemuState.SECONDARY_LOADED and obs.qemu_epoch == 7 and obs.role is Role.SECONDARY
    if core.GoOnAlone in kinds:
        assert obs.role is Role.PRIMARY
    if core.Arbitrate in kinds:
        assert not isinstance(obs.winner, Winner), "a decided epoch is not fought over"
        assert not obs.datastore.bad, "a datastore known to be lost is not asked"
        assert obs.role is not Role.NEITHER
        if obs.role is Role.SECONDARY:
            assert obs.qemu is QemuState.SECONDARY_LOADED and obs.qemu_epoch == 7 and not obs.replication_error
        if obs.qemu is QemuState.ABSENT:
            assert decision.reason is Reason.COLD_RESTART, "who has no copy never wins it for itself"
            assert not obs.own_disk_error, "its images miss writes: only the secondary's will do"
    if core.DestroyOwn in kinds and isinstance(obs.winner, Winner) and obs.winner.host == obs.me:
        of_other_epoch = obs.qemu_epoch is not None and obs.qemu_epoch != 7
        wrong = obs.qemu in core.IN_COLO and (obs.qemu is QemuState.PRIMARY) != (obs.role is Role.PRIMARY)
        shut_down = obs.winner.reason in NOBODY_GOES_LIVE or obs.qemu is QemuState.SHUT_DOWN
        never_whole = obs.qemu is QemuState.SECONDARY_LOADING  # nothing of it could be live
        allowed = of_other_epoch or wrong or shut_down or never_whole or obs.role is Role.NEITHER
        assert allowed, "the winner kills its live copy"
    if core.ReProtect in kinds:
        assert obs.ft_enabled and obs.operation is None and obs.qemu is QemuState.PLAIN


@settings(max_examples=500, deadline=None)
@given(observations)
def test_both_sides_never_go_live_on_one_winner_file(obs: Observation) -> None:
    other = replace(obs, me={"a": "b", "b": "a", "c": "a"}[obs.me])
    both = [bool(_kinds(decide(each, TIMES)) & {core.GoLive, core.GoOnAlone}) for each in (obs, other)]
    assert both != [True, True]


# ------------------------------------------------------------------------------------------- rule by rule

ALIVE = PeerEvidence(Verdict.ALIVE, 20, PeerSaid(7, Role.SECONDARY, PeerQemu.LOADED, None, DatastoreState.OK))
SILENT = PeerEvidence(Verdict.SILENT, 400, ALIVE.said)
MUTE = replace(SILENT, verdict=Verdict.AGENT_SILENT)
PRIMARY = Observation(
    now_ms=100_000,
    me="a",
    boot_id="boot",
    record=PairRecord(7, "a", "b"),
    winner=WinnerAbsent(),
    qemu=QemuState.PRIMARY,
    qemu_epoch=7,
    checkpoint_age_ms=250,
    peer=ALIVE,
    datastore=DatastoreState.OK,
    datastore_ok_ms=60_000,
)
SECONDARY = replace(
    PRIMARY,
    me="b",
    qemu=QemuState.SECONDARY_LOADED,
    peer=replace(ALIVE, said=PeerSaid(7, Role.PRIMARY, PeerQemu.RUNNING, None, DatastoreState.OK)),
)

GONE = replace(PRIMARY, qemu=QemuState.ABSENT, checkpoint_age_ms=None, absent_ms=60_000, peer=SILENT)
SAID_GONE = PeerSaid(7, Role.SECONDARY, PeerQemu.GONE, None, DatastoreState.OK)


def _said(obs: Observation, **changes: object) -> Observation:
    assert obs.peer.said is not None
    return replace(obs, peer=replace(obs.peer, said=replace(obs.peer.said, **changes)))  # type: ignore[arg-type]


RULES: list[tuple[str, Observation, str]] = [
    ("healthy primary", PRIMARY, "Nothing healthy"),
    ("healthy secondary", SECONDARY, "Nothing healthy"),
    ("peer's QEMU gone", _said(SECONDARY, qemu=PeerQemu.GONE), "Arbitrate peer-qemu-gone"),
    ("silence", replace(SECONDARY, peer=SILENT), "Arbitrate peer-silent"),
    ("silence, head start", replace(SECONDARY, peer=replace(SILENT, beat_age_ms=310)), "Nothing head-start"),
    (
        "silence, no head start for the primary",
        replace(PRIMARY, peer=replace(SILENT, beat_age_ms=310)),
        "Arbitrate peer-silent",
    ),
    ("silence disproved", replace(PRIMARY, peer=SILENT, checkpoint_age_ms=50), "Nothing head-start"),
    ("agent silent", replace(PRIMARY, peer=MUTE), "Nothing healthy"),
    *(
        (f"stalled {every} {age}", replace(obs, peer=MUTE, interval_ms=every, checkpoint_age_ms=age), said)
        for obs, every, age, said in (
            (PRIMARY, 100, 1000, "Nothing healthy"),
            (PRIMARY, 100, 1001, "Arbitrate peer-stalled"),
            (PRIMARY, 1000, 1500, "Nothing healthy"),
            (PRIMARY, 1000, 1501, "Arbitrate peer-stalled"),
            (SECONDARY, 1000, 1550, "Nothing healthy"),
            (SECONDARY, 1000, 1551, "Arbitrate peer-stalled"),
            (PRIMARY, 2000, 3000, "Nothing healthy"),
            (PRIMARY, 2000, 3001, "Arbitrate peer-stalled"),
        )
    ),
    ("no checkpoint", replace(PRIMARY, checkpoint_age_ms=3100), "Arbitrate checkpoint-stalled"),
    ("no checkpoint, secondary", replace(SECONDARY, checkpoint_age_ms=3100), "Nothing healthy"),
    ("COLO_EXIT on the primary", replace(PRIMARY, colo_exit_age_ms=0), "Arbitrate colo-exit"),
    ("COLO_EXIT, grace", replace(SECONDARY, colo_exit_age_ms=10), "Nothing shutdown-grace"),
    ("COLO_EXIT, grace over", replace(SECONDARY, colo_exit_age_ms=90), "Arbitrate colo-exit"),
    (
        "COLO_EXIT then shutdown",
        _said(replace(SECONDARY, colo_exit_age_ms=90), qemu=PeerQemu.SHUTDOWN),
        "EndEpochShutdown guest-shutdown",
    ),
    ("guest off", replace(PRIMARY, qemu=QemuState.SHUT_DOWN), "EndEpochShutdown guest-shutdown"),
    (
        "guest off, in no pair",
        replace(PRIMARY, me="c", qemu=QemuState.SHUT_DOWN, winner=Winner("a", Reason.PEER_SILENT)),
        "DestroyOwn guest-shutdown",
    ),
    ("secondary's guest ran ahead", replace(SECONDARY, qemu=QemuState.SHUT_DOWN), "Nothing shutdown-grace"),
    *(
        (f"primary gone {what}", replace(GONE, **changes), said)
        for what, changes, said in (
            ("a minute, and the secondary silent", {}, "Arbitrate cold-restart"),
            ("not yet a minute", {"absent_ms": 59_999}, "Nothing own-qemu-gone"),
            ("its end not watched", {"absent_ms": 0}, "Nothing own-qemu-gone"),
            ("the secondary stands by", {"peer": ALIVE}, "Nothing own-qemu-gone"),
            ("the secondary gone, too", {"peer": replace(ALIVE, said=SAID_GONE)}, "Arbitrate cold-restart"),
            ("its own disk had failed", {"own_disk_error": True}, "Nothing own-qemu-gone"),
            (
                "an operation runs",
                {"operation": Operation("protect", OperationPhase.PREPARING)},
                "Nothing own-qemu-gone",
            ),
            ("the datastore hangs", {"datastore": DatastoreState.HUNG}, "Nothing datastore-silent"),
            ("the secondary has won", {"winner": Winner("b", Reason.PEER_QEMU_GONE)}, "Nothing epoch-ended"),
        )
    ),
    ("replication error", replace(PRIMARY, replication_error=True), "Arbitrate replication-error"),
    ("bad copy never tries", replace(SECONDARY, replication_error=True, peer=SILENT), "Nothing own-copy-bad"),
    ("own disk misses writes", replace(PRIMARY, own_disk_error=True), "DestroyOwn own-copy-bad"),
    (
        "mute secondary",
        replace(PRIMARY, secondary_silence=SecondarySilence(10_000, 20, 20)),
        "Arbitrate secondary-diverges",
    ),
    ("mute, not for long", replace(PRIMARY, secondary_silence=SecondarySilence(9_999, 90, 90)), "Nothing healthy"),
    ("mute, few intervals", replace(PRIMARY, secondary_silence=SecondarySilence(99_999, 19, 90)), "Nothing healthy"),
    ("mute, few frames", replace(PRIMARY, secondary_silence=SecondarySilence(99_999, 90, 19)), "Nothing healthy"),
    (
        "mute, but one was given up lately",
        replace(PRIMARY, secondary_silence=SecondarySilence(99_999, 90, 90), patience_ms=1),
        "Nothing healthy",
    ),
    ("not its business", replace(SECONDARY, secondary_silence=SecondarySilence(99_999, 90, 90)), "Nothing healthy"),
    ("a copy was changed with virsh", replace(PRIMARY, changed_outside=True), "Arbitrate changed-outside"),
    ("the primary's business", replace(SECONDARY, changed_outside=True), "Nothing healthy"),
    (
        "a changed copy leaves it to the primary",
        replace(SECONDARY, changed_outside=True, colo_exit_age_ms=500, peer=PeerEvidence(Verdict.ALIVE, 10)),
        "Nothing healthy",
    ),
    (
        "but not to one that is lost",
        replace(SECONDARY, changed_outside=True, colo_exit_age_ms=500, peer=PeerEvidence(Verdict.SILENT, 800)),
        "Arbitrate colo-exit",
    ),
    (
        "nor to one that hangs",
        replace(
            SECONDARY,
            changed_outside=True,
            colo_exit_age_ms=500,
            checkpoint_age_ms=9000,
            peer=PeerEvidence(Verdict.ALIVE, 10),
        ),
        "Arbitrate checkpoint-stalled",
    ),
    ("hold proxy died", replace(PRIMARY, hold_alive=False), "Arbitrate hold-lost"),
    ("peer's datastore", _said(SECONDARY, datastore=DatastoreState.HUNG), "Arbitrate peer-datastore-lost"),
    (
        "peer's datastore, hiccup",
        _said(replace(SECONDARY, datastore_ok_ms=100), datastore=DatastoreState.HUNG),
        "Nothing healthy",
    ),
    ("own datastore", replace(PRIMARY, datastore=DatastoreState.FAILED), "Yield datastore-lost-here"),
    (
        "nobody's datastore",
        _said(replace(PRIMARY, datastore=DatastoreState.HUNG), datastore=DatastoreState.HUNG),
        "Nothing datastore-silent",
    ),
    (
        "silent and no datastore",
        replace(SECONDARY, datastore=DatastoreState.HUNG, peer=SILENT),
        "Nothing datastore-silent",
    ),
    ("half loaded", replace(SECONDARY, qemu=QemuState.SECONDARY_LOADING, peer=SILENT), "Nothing not-loaded"),
    ("old epoch", replace(SECONDARY, qemu_epoch=6, peer=SILENT), "DestroyOwn old-epoch"),
    ("peer won", _said(replace(PRIMARY, winner=WinnerUnknown()), won_epoch=7), "DestroyOwn peer-won"),
    ("lost", replace(PRIMARY, winner=Winner("b", Reason.PEER_SILENT)), "DestroyOwn lost"),
    ("won, promoted", replace(SECONDARY, winner=Winner("b", Reason.PEER_SILENT), peer=SILENT), "GoLive won"),
    ("won, kept", replace(PRIMARY, winner=Winner("a", Reason.COLO_EXIT)), "GoOnAlone won"),
    ("cold restart", replace(SECONDARY, winner=Winner("b", Reason.COLD_RESTART)), "DestroyOwn cold-restart"),
    (
        "alone",
        replace(SECONDARY, winner=Winner("b", Reason.COLO_EXIT), qemu=QemuState.PLAIN, peer=SILENT),
        "ReProtect need-secondary",
    ),
    (
        "alone, FT off",
        replace(PRIMARY, winner=Winner("a", Reason.TURN_OFF), qemu=QemuState.PLAIN, ft_enabled=False),
        "TellPeerDestroy ft-off",
    ),
    ("plain beside the primary", replace(SECONDARY, qemu=QemuState.PLAIN), "DestroyOwn not-won"),
    (
        "plain, winner not readable",
        replace(SECONDARY, qemu=QemuState.PLAIN, winner=WinnerUnknown()),
        "Nothing datastore-silent",
    ),
    ("protect left half done", replace(PRIMARY, qemu=QemuState.PLAIN), "Arbitrate protect-undone"),
    (
        "operation",
        replace(PRIMARY, peer=SILENT, operation=Operation("protect", OperationPhase.PREPARING)),
        "Nothing operation-running",
    ),
    ("own QEMU gone", replace(PRIMARY, qemu=QemuState.ABSENT), "Nothing own-qemu-gone"),
    (
        "primary hung, secondary there",
        replace(PRIMARY, qemu=QemuState.HUNG, checkpoint_age_ms=9999),
        "Nothing own-qemu-hung",
    ),
    (
        "copy of the next epoch does not answer while it is made, the last epoch was lost",
        replace(SECONDARY, qemu=QemuState.HUNG, qemu_epoch=8, winner=Winner("a", Reason.PEER_SILENT)),
        "Nothing own-qemu-hung",
    ),
    (
        "copy of the lost epoch does not answer",
        replace(SECONDARY, qemu=QemuState.HUNG, winner=Winner("a", Reason.PEER_SILENT)),
        "DestroyOwn lost",
    ),
    ("no record read yet", replace(PRIMARY, record=None, record_known=False), "Nothing datastore-silent"),
    ("new VM", replace(PRIMARY, record=None, qemu=QemuState.PLAIN), "ReProtect starting"),
]


@pytest.mark.parametrize(("name", "obs", "expected"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(name: str, obs: Observation, expected: str) -> None:
    decision = decide(obs, TIMES)
    assert f"{type(decision.actions[0]).__name__} {decision.reason}" == expected


def test_reachable_loser_is_told_before_going_live_a_silent_one_after() -> None:
    won = replace(SECONDARY, winner=Winner("b", Reason.COLO_EXIT))
    assert decide(won, TIMES).actions == (core.TellPeerDestroy(7), core.GoLive(7))
    assert decide(replace(won, peer=SILENT), TIMES).actions == (core.GoLive(7), core.TellPeerDestroy(7))


@pytest.mark.parametrize(("reason", "expected"), [
    (Reason.PEER_SILENT, 310), (Reason.COLO_EXIT, 12), (Reason.CHECKPOINT_STALLED, 3001), (Reason.HOLD_LOST, None),
    (Reason.SECONDARY_DIVERGES, None),
])  # fmt: skip
def test_how_long_it_was_so_before_it_was_noticed(reason: Reason, expected: int | None) -> None:
    peer = PeerEvidence(Verdict.SILENT, 310)
    assert unnoticed_ms(replace(PRIMARY, peer=peer, colo_exit_age_ms=12, checkpoint_age_ms=3001), reason) == expected


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Reason)


def test_a_copy_that_waits_for_a_lost_primary_ends() -> None:
    """The journal of a protect whose host was lost may stand for ever, and so may the record of its pair."""
    waiting = Observation(
        now_ms=100_000,
        me="b",
        boot_id="boot",
        record=PairRecord(7, "a", "b"),
        qemu=QemuState.SECONDARY_LOADING,
        qemu_epoch=8,
        peer=PeerEvidence(Verdict.SILENT, TIMES.checkpoint_timeout_ms),
        operation=Operation("protect", OperationPhase.PREPARING),
    )
    assert decide(waiting, TIMES).reason is Reason.ABANDONED
    assert decide(replace(waiting, record=None), TIMES).reason is Reason.ABANDONED
    recorded = replace(waiting, qemu_epoch=7, winner=WinnerAbsent())
    assert decide(recorded, TIMES).reason is Reason.ABANDONED
    assert decide(replace(recorded, qemu=QemuState.SECONDARY_LOADED), TIMES).reason is not Reason.ABANDONED
    short = PeerEvidence(Verdict.SILENT, TIMES.checkpoint_timeout_ms - 1)
    assert decide(replace(waiting, peer=short), TIMES).reason is Reason.OPERATION_RUNNING
