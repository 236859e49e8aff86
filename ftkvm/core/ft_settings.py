"""The FT settings of one VM (``ft.settings`` in its record): names, ranges, defaults, and when they apply. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """``choices`` for words, ``low``..``high`` for whole numbers; ``applies``: at once, or at the next protect."""

    name: str
    default: str | int
    meaning: str
    applies: str
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 0

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return " | ".join(self.choices) if self.choices else f"{self.low}…{self.high}"

    def parse(self, text: str) -> str | int:
        """The value of ``text``. :raises ValueError: it is not allowed"""
        if self.choices:
            if text not in self.choices:
                raise ValueError(f"{text} is none of {self.allowed}")
            return text
        number = int(text)
        if not self.low <= number <= self.high:
            raise ValueError(f"{number} is not in {self.allowed}")
        return number


NEXT, NOW = "at the next protect", "at once"
SETTINGS: dict[str, Setting] = {
    each.name: each
    for each in (
        Setting("ft.uncompared_frames", "hold", "frames COLO does not compare (IPv6, VLAN): wait for a checkpoint, "
                "are dropped, or leave uncompared (warning: a failover may contradict them)", NEXT,
                ("hold", "block", "allow")),
        Setting("ft.disks", "shared", "shared: the images are on the datastore, and nothing is copied; copy: they are "
                "on disks of the hosts, the second copy gets whole images of its own, copied each time it is made",
                NEXT, ("shared", "copy")),
        Setting("ft.checkpoint_min_ms", 100, "shortest time between checkpoints", NOW, low=20, high=10000),
        Setting("ft.checkpoint_max_ms", 1000, "longest time between checkpoints", NOW, low=20, high=10000),
        Setting("ft.max_switchover_seconds", 8, "a protect that would stop the VM longer is given up", NEXT,
                low=1, high=300),
        Setting("ft.secondary_start_seconds", 300, "a secondary without the VM's disks and memory by then is given up",
                NEXT, low=10, high=7200),
        Setting("ft.compare_timeout_ms", 200, "a packet that the other copy has not sent by then forces a checkpoint",
                NEXT, low=20, high=10000),
    )
}  # fmt: skip


class BadSetting(ValueError):
    """A setting that does not exist, or a value it may not have; ``name``, ``detail``."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name, self.detail = name, detail


def effective(given: Mapping[str, Any]) -> dict[str, str | int]:
    """All settings with their values, defaults filled in."""
    return {name: given.get(name, setting.default) for name, setting in SETTINGS.items()}


def change(given: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """``given`` with the changes applied; an empty text takes a setting back to its default.

    :raises BadSetting: an unknown name, a bad value, or values that contradict each other; nothing is changed then
    """
    changed = dict(given)
    for name, text in words.items():
        setting = SETTINGS.get(name)
        if setting is None:
            raise BadSetting(name, f"there are {', '.join(SETTINGS)}")
        if text == "":
            changed.pop(name, None)
            continue
        try:
            changed[name] = setting.parse(text)
        except ValueError as error:
            raise BadSetting(name, f"{error}; allowed: {setting.allowed}") from error
    values = effective(changed)
    if int(values["ft.checkpoint_min_ms"]) > int(values["ft.checkpoint_max_ms"]):
        raise BadSetting("ft.checkpoint_min_ms", f"{values['ft.checkpoint_min_ms']} is above ft.checkpoint_max_ms "
                         f"({values['ft.checkpoint_max_ms']})")  # fmt: skip
    return changed
