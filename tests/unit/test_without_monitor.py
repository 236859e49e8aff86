"""What a QEMU is taken for when its FT monitor does not answer."""

from ftkvm.core.facts import QemuState, without_monitor


def test_a_process_that_had_our_monitor_is_ending_not_an_ordinary_vm() -> None:
    """Else a primary that powers itself off would win its epoch alone, and its client would see nobody."""
    assert without_monitor(71, 71) is QemuState.HUNG


def test_a_process_that_never_had_it_is_an_ordinary_vm() -> None:
    assert without_monitor(72, 71) is QemuState.PLAIN
    assert without_monitor(72, None) is QemuState.PLAIN


def test_no_process_no_vm() -> None:
    assert without_monitor(None, 71) is QemuState.ABSENT
