"""A VM's FT settings: what is taken, what is refused, and that a refusal changes nothing."""

import pytest

from ftkvm.core import ft_settings


def test_defaults_are_filled_in() -> None:
    assert ft_settings.effective({})["ft.secondary_start_seconds"] == 300
    assert ft_settings.effective({})["ft.uncompared_frames"] == "hold"
    assert ft_settings.effective({"ft.checkpoint_min_ms": 50})["ft.checkpoint_min_ms"] == 50


def test_a_change_and_its_way_back() -> None:
    changed = ft_settings.change({}, {"ft.uncompared_frames": "block", "ft.checkpoint_max_ms": "300"})
    assert changed == {"ft.uncompared_frames": "block", "ft.checkpoint_max_ms": 300}
    assert ft_settings.change(changed, {"ft.uncompared_frames": ""}) == {"ft.checkpoint_max_ms": 300}


@pytest.mark.parametrize(("name", "text"), [
    ("ft.nothing", "1"),
    ("ft.uncompared_frames", "drop"),
    ("ft.checkpoint_min_ms", "19"),
    ("ft.checkpoint_min_ms", "10001"),
    ("ft.checkpoint_min_ms", "fast"),
    ("ft.checkpoint_min_ms", "2000"),  # above the longest
    ("ft.max_switchover_seconds", "0"),
])  # fmt: skip
def test_what_is_refused(name: str, text: str) -> None:
    given = {"ft.checkpoint_max_ms": 500}
    with pytest.raises(ft_settings.BadSetting) as refused:
        ft_settings.change(given, {"ft.compare_timeout_ms": "100", name: text})
    assert refused.value.name == name
    assert given == {"ft.checkpoint_max_ms": 500}
