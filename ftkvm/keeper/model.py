"""What the keeper is told and what it says, as frozen dataclasses, and their JSON forms (docs/keeper.md).

``from_json`` raises ``ValueError`` naming the field that does not fit: this is the check at the keeper's door.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Json = dict[str, Any]
Role = Literal["primary", "secondary", "solo"]
Qemu = Literal["running", "loaded", "gone", "shutdown"]
Verdict = Literal["alive", "silent", "agent_silent", "unknown"]
DatastoreState = Literal["ok", "hung", "failed", "readonly", "unknown"]
GateState = Literal["open", "closed"]

_UUID = re.compile(r"[0-9a-fA-F-]{8,64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_TAP = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # also keeps anything that nft would read as syntax out of its commands
_ADDRESS = re.compile(r"[0-9.]{7,15}")


def _text(doc: Json, key: str, pattern: re.Pattern[str]) -> str:
    value = doc.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{key}: {value!r} is not acceptable")
    return value


def _number(doc: Json, key: str) -> int:
    value = doc.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key}: {value!r} is not a whole number")
    return value


def _optional_number(doc: Json, key: str) -> int | None:
    return None if doc.get(key) is None else _number(doc, key)


def _choice(doc: Json, key: str, choices: tuple[str, ...]) -> str:
    value = doc.get(key)
    if value not in choices:
        raise ValueError(f"{key}: {value!r} is none of {', '.join(choices)}")
    return str(value)


@dataclass(frozen=True)
class PeerSpec:
    """The other host of a pair, on the FT network (IPv4)."""

    host: str
    ft_address: str
    port: int

    @staticmethod
    def from_json(doc: Json) -> "PeerSpec":
        return PeerSpec(_text(doc, "host", _NAME), _text(doc, "ft_address", _ADDRESS), _number(doc, "port"))

    def to_json(self) -> Json:
        return {"host": self.host, "ft_address": self.ft_address, "port": self.port}


@dataclass(frozen=True)
class PairSpec:
    """This host's side of one FT pair, as its agent last declared it.

    ``taps`` are the bridge ports behind the gate; ``won_epoch`` is the epoch this host has won by arbitration;
    ``interval_ms`` is told by a primary: the time between two checkpoints that is now in force.
    """

    uuid: str
    vm: str
    epoch: int
    role: Role
    peer: PeerSpec | None
    taps: tuple[str, ...]
    qemu: Qemu
    won_epoch: int | None = None
    interval_ms: int | None = None

    @staticmethod
    def from_json(doc: Json) -> "PairSpec":
        peer, taps = doc.get("peer"), doc.get("taps")
        if peer is not None and not isinstance(peer, dict):
            raise ValueError(f"peer: {peer!r} is not an object")
        if not isinstance(taps, list) or len(taps) > 64:
            raise ValueError(f"taps: {taps!r} is not a list of at most 64 ports")
        role = cast(Role, _choice(doc, "role", get_args(Role)))
        if peer is None and role != "solo":
            raise ValueError(f"peer: a {role} needs one")
        return PairSpec(
            uuid=_text(doc, "uuid", _UUID),
            vm=_text(doc, "vm", _NAME),
            epoch=_number(doc, "epoch"),
            role=role,
            peer=None if peer is None else PeerSpec.from_json(peer),
            taps=tuple(_text({"taps": tap}, "taps", _TAP) for tap in taps),
            qemu=cast(Qemu, _choice(doc, "qemu", get_args(Qemu))),
            won_epoch=_optional_number(doc, "won_epoch"),
            interval_ms=_optional_number(doc, "interval_ms"),
        )

    def to_json(self) -> Json:
        return {
            "uuid": self.uuid, "vm": self.vm, "epoch": self.epoch, "role": self.role,
            "peer": None if self.peer is None else self.peer.to_json(),
            "taps": list(self.taps), "qemu": self.qemu, "won_epoch": self.won_epoch,
            "interval_ms": self.interval_ms,
        }  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What the peer's last authentic beat said about a pair. ``epoch`` … are None if it does not know the pair."""

    host: str
    boot_id: str
    datastore: DatastoreState
    epoch: int | None = None
    role: Role | None = None
    qemu: Qemu | None = None
    won_epoch: int | None = None
    interval_ms: int | None = None

    @staticmethod
    def from_json(doc: Json) -> "Said":
        return Said(
            host=str(doc["host"]),
            boot_id=str(doc["boot_id"]),
            datastore=cast(DatastoreState, _choice(doc, "datastore", get_args(DatastoreState))),
            epoch=_optional_number(doc, "epoch"),
            role=cast(Role, _choice(doc, "role", get_args(Role))) if doc.get("role") is not None else None,
            qemu=cast(Qemu, _choice(doc, "qemu", get_args(Qemu))) if doc.get("qemu") is not None else None,
            won_epoch=_optional_number(doc, "won_epoch"),
            interval_ms=_optional_number(doc, "interval_ms"),
        )

    def to_json(self) -> Json:
        return {
            "host": self.host, "boot_id": self.boot_id, "epoch": self.epoch, "role": self.role, "qemu": self.qemu,
            "won_epoch": self.won_epoch, "datastore": self.datastore, "interval_ms": self.interval_ms,
        }  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What is known about the peer of one pair. Ages are None if nothing was ever heard."""

    verdict: Verdict
    beat_age_ms: int | None
    ping_age_ms: int | None
    said: Said | None

    @staticmethod
    def from_json(doc: Json) -> "Evidence":
        return Evidence(
            verdict=cast(Verdict, _choice(doc, "verdict", get_args(Verdict))),
            beat_age_ms=_optional_number(doc, "beat_age_ms"),
            ping_age_ms=_optional_number(doc, "ping_age_ms"),
            said=None if doc.get("said") is None else Said.from_json(doc["said"]),
        )

    def to_json(self) -> Json:
        return {
            "verdict": self.verdict, "beat_age_ms": self.beat_age_ms, "ping_age_ms": self.ping_age_ms,
            "said": None if self.said is None else self.said.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class DatastoreHealth:
    """How this host's own writes to the datastore fare; ``age_ms``: since the last one that succeeded."""

    state: DatastoreState
    age_ms: int | None
    error: str | None = None

    @staticmethod
    def from_json(doc: Json) -> "DatastoreHealth":
        state = cast(DatastoreState, _choice(doc, "state", get_args(DatastoreState)))
        return DatastoreHealth(state, _optional_number(doc, "age_ms"), doc.get("error"))

    def to_json(self) -> Json:
        return {"state": self.state, "age_ms": self.age_ms, "error": self.error}


@dataclass(frozen=True)
class PairStatus:
    """One pair as the keeper sees it now."""

    gate: GateState
    peer: Evidence

    @staticmethod
    def from_json(doc: Json) -> "PairStatus":
        return PairStatus(cast(GateState, _choice(doc, "gate", get_args(GateState))), Evidence.from_json(doc["peer"]))


@dataclass(frozen=True)
class KeeperStatus:
    """The answer to ``status``; ``gate_error`` says why the gates cannot be set (nftables), if so."""

    uptime_ms: int
    datastore: DatastoreHealth
    pairs: dict[str, PairStatus]
    gate_error: str | None
    beat_keys: int = 0
    """Number of the beat keys in use."""

    @staticmethod
    def from_json(doc: Json) -> "KeeperStatus":
        return KeeperStatus(
            uptime_ms=_number(doc, "uptime_ms"),
            datastore=DatastoreHealth.from_json(doc["datastore"]),
            pairs={uuid: PairStatus.from_json(pair) for uuid, pair in doc["pairs"].items()},
            gate_error=doc.get("gate_error"),
            beat_keys=int(doc.get("beat_keys", 0)),
        )


@dataclass(frozen=True)
class EvidenceEvent:
    """One pushed event of a subscription."""

    uuid: str
    peer: Evidence
    datastore: DatastoreHealth
    gate: GateState

    @staticmethod
    def from_json(doc: Json) -> "EvidenceEvent":
        return EvidenceEvent(
            uuid=str(doc["uuid"]),
            peer=Evidence.from_json(doc["peer"]),
            datastore=DatastoreHealth.from_json(doc["datastore"]),
            gate=cast(GateState, _choice(doc, "gate", get_args(GateState))),
        )
