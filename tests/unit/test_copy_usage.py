"""What a secondary takes of its host (FT-10)."""

import os

from ftkvm.agent.copy_usage import ASK_EVERY_S, CopyUsage, usage_of


def said(cpu_s: float, epoch: int = 3, mhz: int = 2000) -> dict[str, object]:
    return {"epoch": epoch, "usage": {"cpu_s": cpu_s, "mhz": mhz, "memory_mb": 256}}


def test_mhz_are_the_difference_of_two_looks() -> None:
    usage = CopyUsage()
    usage.take(said(10.0), 100.0)
    assert usage.to_json() == {"secondary_cpu_mhz": None, "secondary_memory_mb": 256}
    usage.take(said(15.0), 110.0)
    assert usage.cpu_mhz == 1000  # half of one processor


def test_another_epochs_copy_begins_anew() -> None:
    usage = CopyUsage()
    usage.take(said(10.0), 100.0)
    usage.take(said(15.0), 110.0)
    usage.take(said(1.0, epoch=4), 120.0)
    assert usage.cpu_mhz is None
    usage.take(said(2.0, epoch=4), 130.0)
    assert usage.cpu_mhz == 200


def test_a_copy_that_is_gone_takes_nothing() -> None:
    usage = CopyUsage()
    usage.take(said(10.0), 100.0)
    usage.take({"qemu": "absent"}, 110.0)
    assert usage.to_json() == {"secondary_cpu_mhz": None, "secondary_memory_mb": None}


def test_it_is_asked_now_and_then() -> None:
    usage = CopyUsage()
    assert [usage.due(at) for at in (1.0, 2.0, 1.0 + ASK_EVERY_S)] == [True, False, True]


def test_a_process_of_this_machine() -> None:
    found = usage_of(os.getpid())
    assert found["cpu_s"] > 0 and found["memory_mb"] > 10
    assert usage_of(None) == usage_of(2**22 + 1) == {}
