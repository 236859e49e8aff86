"""What `ftkvm lab up` was asked for, kept beside the lab: a host's disk belongs to one image, its clock to one pace."""

import json
from dataclasses import asdict, dataclass

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names

RECORD = names.STATE / "lab.json"


@dataclass(frozen=True)
class Record:
    """The lab that is there."""

    hosts: int
    memory_mib: int | None
    image: str
    hosts_as: str = "containers"
    """Or ``vms``."""
    time_dilation: float = 1.0
    """How many seconds of this machine a second of the hosts takes (:mod:`ftkvm.lab.vm.dilation`)."""
    nfs: bool = False
    """The datastore is the storage VM's, and `ftkvm host add` mounts it; else hosts come up with this machine's."""
    bare: str = ""
    """The image of hosts that have sshd and a key, and nothing of ours (:mod:`ftkvm.lab.vm.bare`); empty: they have."""

    @property
    def storage(self) -> str:
        """How hosts see the datastore."""
        return "nfs" if self.nfs else "virtiofs" if self.hosts_as == "vms" else "bindfs"

    def write(self) -> None:
        RECORD.write_text(json.dumps(asdict(self)))


def standing() -> Record | None:
    """The lab that is up (or was, before the machine restarted), if there is one."""
    return Record(**json.loads(RECORD.read_text())) if RECORD.exists() else None


def record() -> Record:
    """The same; FTKVM-720 if there is none."""
    there = standing()
    if there is None:
        raise FtkvmError("FTKVM-720")
    return there
