"""What is said of a write-back that failed, and when it is tried again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftkvm.adapters import images
from ftkvm.agent.merging import merge_overlays
from ftkvm.agent.write_back import WriteBackTrouble
from ftkvm.catalogue import FtkvmError
from ftkvm.core.patience import Backoff
from ftkvm.engine.writeback import WriteBackFailed

FULL = WriteBackFailed("vda", "No space left on device")


def test_failures_in_a_row_wait_longer_up_to_a_minute() -> None:
    backoff, now, waits = Backoff(), 1000.0, []
    for _ in range(9):
        backoff.failed(now)
        before = now
        while not backoff.due(now):
            now += 0.5
        waits.append(now - before)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_write_back_is_told_once_and_tried_again() -> None:
    trouble = WriteBackTrouble("vm1")
    assert not trouble.waits(0.0) and trouble.error is None
    assert trouble.failed(FULL, 100.0)
    assert trouble.error is not None and trouble.error.code == "FTKVM-145"
    assert "vda" in trouble.error.text and "No space left" in trouble.error.text
    assert trouble.waits(100.9) and not trouble.waits(101.0)
    assert not trouble.failed(FULL, 101.0)  # no news
    assert trouble.waits(102.9) and not trouble.waits(103.0)
    assert trouble.mended() and trouble.error is None and not trouble.waits(0.0)
    assert not trouble.mended()
    assert trouble.failed(FULL, 200.0) and not trouble.waits(201.0)  # from the beginning


@pytest.mark.parametrize("said", [None, "No space left on device"])
def test_a_merge_that_fails_says_what_qemu_said(tmp_path: Path, said: str | None) -> None:
    """libvirt only says that the job is gone; the overlay stays."""
    base, top = str(tmp_path / "vm.qcow2"), str(tmp_path / "vm.ft-1-p.qcow2")
    images.create_empty(base, 1 << 20)
    images.create_overlay(top, base, "qcow2")
    disk = SimpleNamespace(target="vda", source=top)

    @contextmanager
    def committed(_uuid: str, target: str, _base: str) -> Iterator[None]:
        vm.job_error = said
        raise FtkvmError("FTKVM-516", disk=target, detail="the commit ended before it was complete")
        yield

    def shape(fresh: bool) -> Any:
        return SimpleNamespace(disks=[disk])

    vm: Any = SimpleNamespace(
        uuid="u", shape=shape, domains=SimpleNamespace(committed=committed), job_error="of an earlier job"
    )
    with pytest.raises(FtkvmError) as failed:
        merge_overlays(SimpleNamespace(), vm, {"vda": top})  # type: ignore[arg-type]
    assert failed.value.code == "FTKVM-516"
    assert str(failed.value).endswith("complete (No space left on device)" if said else "complete")
    assert Path(top).exists()
