"""What the lab's tests share: one stage (three hosts, a cluster), and a protected VM with its client."""

import os
from collections.abc import Iterator

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import preflight, soak, trials
from ftkvm.lab.stage import Stage

SEED = int(os.environ.get("FTKVM_SEED", "1"))
FULL = bool(os.environ.get("FTKVM_FULL"))
"""Every case, where otherwise a sample is taken (`make long`)."""


@pytest.fixture(scope="session")
def stage() -> Stage:
    """Three hosts that are one cluster; a lab that is up is used, and left up."""
    try:
        preflight.check()
    except FtkvmError as error:
        pytest.skip(f"the lab cannot run here: {error}")
    return soak.make_stage(print)


@pytest.fixture(scope="module")
def protected_vm(stage: Stage) -> Iterator[trials.Round]:
    """A protected VM with a client whose connections live as long as the module's tests."""
    guest = soak.make_vm(stage, "ci1", "1G", print)
    print("protected:", soak.protect(stage, guest.name))
    try:
        with soak.streaming(stage, guest, print, SEED) as this:
            yield this
    finally:
        trials.destroy(stage, guest.name)
