"""HA on real hosts, with default times: a short round; the long one is ``python -m ftkvm.lab.ha_soak``."""

from collections.abc import Callable, Iterator

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import ha_trials, preflight
from ftkvm.lab.ha_ground import Ground, HaOutcome, watched
from ftkvm.lab.ha_stage import staged

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Three hosts of their own with six VMs."""
    try:
        preflight.check()
    except FtkvmError as error:
        pytest.skip(f"the lab cannot run here: {error}")
    with staged(tmp_path_factory.mktemp("ha"), print) as stage, watched(stage, print) as made:
        yield made


@pytest.mark.parametrize(
    "trial",
    [
        ha_trials.crash,
        lambda ground: ha_trials.crash(ground, coordinator=True),
        lambda ground: ha_trials.storage_lost(ground, "hang"),
        ha_trials.host_frozen,
    ],
    ids=["crash", "crash-coordinator", "storage-hang", "host-frozen"],
)
def test_vms_run_elsewhere_in_order_and_never_twice(ground: Ground, trial: Callable[[Ground], HaOutcome]) -> None:
    outcome = trial(ground)
    assert not outcome.wrong, "\n".join(outcome.events)
    assert set(outcome.claimed_s) == set(outcome.vms) != set()


def test_every_acknowledged_record_is_on_its_disk(ground: Ground) -> None:
    """The last test: it switches the VMs off."""
    proof = ground.prove()
    assert proof["acknowledged"] > 0
    assert (proof["lost"], proof["doubled"], proof["wrong"]) == (0, 0, 0)
