"""What is wanted of a VM: ``"power": "on" | "off"`` in its record. HA starts those that are on and run nowhere."""

import logging

from ftkvm.agent import vm_file
from ftkvm.agent.context import AgentContext
from ftkvm.agent.storage import bounded
from ftkvm.ports import CorruptFile, Datastore, DatastoreError

log = logging.getLogger(__name__)


def write_power(datastore: Datastore, uuid: str, *, on: bool) -> None:
    """Note it; a VM that is not registered has nothing to note it in. Blocks."""
    vm_file.change(datastore, uuid, lambda document: {**document, "power": "on" if on else "off"})


def note_power(ctx: AgentContext, uuid: str, *, on: bool) -> None:
    """As :func:`write_power`, bounded.

    :raises DatastoreError: it could not be noted
    """
    bounded(ctx, lambda: write_power(ctx.datastore, uuid, on=on), f"vms/{uuid}/record")


def try_power(ctx: AgentContext, uuid: str, *, on: bool) -> None:
    """As :func:`note_power`, for what must go on while the datastore does not answer."""
    try:
        note_power(ctx, uuid, on=on)
    except (DatastoreError, CorruptFile) as error:
        log.warning("%s: %s; not noted that it shall be %s", uuid, error, "on" if on else "off")
