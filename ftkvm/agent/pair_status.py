"""What is shown of a pair: its state, why, what it costs, and what gives protection up."""

from dataclasses import replace
from typing import Any

from ..core.channels import Encryption
from ..core.facts import FtSettings
from ..core.ft_settings import effective
from ..core.lockstep import colour
from ..core.pair import Observation, Operation, OperationPhase, Role, Winner
from ..core.states import view
from ..core.trouble import is_mute
from .copy_usage import CopyUsage
from .outside import warnings
from .pair_worker import PairWorker
from .records import PairDoc


def status_row(worker: PairWorker, refusal: str | None, wanted: Encryption) -> dict[str, Any]:
    """What `ftkvm status` shows of a pair whose main copy is here. ``refusal``: why it could not be protected again."""
    records = worker.poller.snapshot()
    observation = _seen(worker, records.ft_enabled)
    row = view(observation, worker.settings)
    protected = row.state == "protected"
    decided = isinstance(observation.winner, Winner)
    pair = records.pair
    cause = refusal if not protected else None
    if worker.write_back.error is not None:
        cause = str(worker.write_back.error)
    figures = worker.figures.summary()
    shade = colour(figures["lockstep_interval_s"], worker.pacer.interval_ms) if protected else None
    return {
        "vm": worker.name,
        "uuid": worker.uuid,
        "state": str(row.state),
        "reason": str(row.reason),
        "shown_as": row.shown_as,
        "cause": cause,
        "host": worker.ctx.host,
        "secondary_host": pair.secondary.host if pair is not None and not decided else None,
        **(worker.usage if protected else CopyUsage()).to_json(),
        "epoch": pair.epoch if pair else 0,
        "encrypted": pair.encrypted if pair is not None and protected else None,
        "operation": worker.operation_name,
        "step": worker.operation_step,
        "warnings": [
            *_warnings(records.ft_settings),
            *(_plain(pair, wanted) if protected else []),
            *_mute(observation, worker.settings),
            *warnings(worker.outside, pair.epoch if pair else 0, records.last_failover),
        ],
        **figures,
        "lockstep": str(shade) if shade else None,
        "checkpoint_interval_ms": worker.pacer.interval_ms,
        "checkpoint_interval_why": worker.pacer.why,
        "log_bandwidth_mbit_s": worker.pacer.log_bandwidth_mbit_s,
        "last_failover": worker.last_failover(),
        "protect": worker.protect_figures,
        "reprotect_s": worker.reprotect_s,
        "decision": str(worker.decision.reason) if worker.decision else None,
    }


def _seen(worker: PairWorker, ft_enabled: bool) -> Observation:
    """The last observation; during an operation none is made, so one from before does not know of it."""
    observation = worker.observation
    assert observation is not None
    if worker.operation_name is None:
        return observation
    operation = Operation(worker.operation_name, OperationPhase.PREPARING)
    return replace(observation, operation=operation, ft_enabled=ft_enabled)


def _warnings(ft_settings: dict[str, Any]) -> list[str]:
    """What an operator has chosen that gives protection up."""
    if effective(ft_settings)["ft.uncompared_frames"] == "allow":
        return ["ft.uncompared_frames=allow: IPv6 and VLAN frames leave uncompared; a failover may contradict them"]
    return []


def _plain(pair: PairDoc | None, wanted: Encryption) -> list[str]:
    """A pair that was made while ft.encryption was off."""
    if pair is None or pair.encrypted or not wanted.ft:
        return []
    return ["its channels are not encrypted: it was made before ft.encryption was on; `ftkvm test restart-secondary` "
            "makes it anew"]  # fmt: skip


def _mute(observation: Observation, settings: FtSettings) -> list[str]:
    """What is seen of a secondary that would be given up, were not others given up lately."""
    silence = observation.secondary_silence
    if observation.role is not Role.PRIMARY or silence is None or not is_mute(silence, settings):
        return []
    return [
        f"the secondary's guest has sent nothing for {silence.ms // 1000} s, so every answer waits for a checkpoint; "
        f"another one is made in {observation.patience_ms // 1000} s"
    ]
