"""Processors: what /proc/cpuinfo says, groups of them, and how two differ. Pure."""

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cpu:
    """The first processor of a host."""

    vendor: str = ""
    family: int = 0
    model: int = 0
    stepping: int = 0
    name: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        """Vendor, family, model, stepping and a digest of the feature flags: equal for processors that are alike."""
        digest = hashlib.sha256(" ".join(sorted(self.flags)).encode()).hexdigest()[:12]
        return f"{self.vendor}/{self.family}/{self.model}/{self.stepping}/{digest}"


def parse(cpuinfo: str) -> Cpu:
    """The first processor of /proc/cpuinfo; what it does not say is empty or 0."""
    fields = {}
    for line in cpuinfo.split("\n\n")[0].splitlines():
        key, _colon, value = line.partition(":")
        fields[key.strip()] = value.strip()

    def number(key: str) -> int:
        text = fields.get(key, "")
        return int(text) if text.isdigit() else 0

    return Cpu(fields.get("vendor_id", ""), number("cpu family"), number("model"), number("stepping"),
               fields.get("model name", ""), frozenset(fields.get("flags", "").split()))  # fmt: skip


def differences(one: Cpu, other: Cpu) -> list[str]:
    """Feature by feature, in words; empty if they are alike."""
    found = [
        f"{what} {getattr(one, what)} and {getattr(other, what)}"
        for what in ("vendor", "family", "model", "stepping")
        if getattr(one, what) != getattr(other, what)
    ]
    for flags, side in ((one.flags - other.flags, "first"), (other.flags - one.flags, "second")):
        if flags:
            found.append(f"only the {side} has {' '.join(sorted(flags))}")
    return found


@dataclass(frozen=True)
class Group:
    """Processors of one generation. ``mixed``: two of its models may make a pair if their flags are the same."""

    name: str
    vendor: str
    families: frozenset[int]
    models: frozenset[int] | None = None  # None: all of the families
    mixed: bool = False

    def has(self, cpu: Cpu) -> bool:
        return (
            cpu.vendor == self.vendor
            and cpu.family in self.families
            and (self.models is None or cpu.model in self.models)
        )


def _intel(name: str, *models: int) -> Group:
    return Group(name, "GenuineIntel", frozenset({6}), frozenset(models))


def _amd(name: str, *families: int) -> Group:
    return Group(name, "AuthenticAMD", frozenset(families))


GROUPS: tuple[Group, ...] = (
    _intel("Intel Nehalem, Westmere", 26, 30, 31, 37, 44, 46, 47),
    _intel("Intel Sandy Bridge, Ivy Bridge", 42, 45, 58, 62),
    _intel("Intel Haswell, Broadwell", 60, 61, 63, 69, 70, 71, 79, 86),
    _intel("Intel Skylake, Cascade Lake, Cooper Lake", 78, 85, 94, 142, 158, 165, 166),
    _intel("Intel Ice Lake", 106, 108, 125, 126),
    _intel("Intel Sapphire Rapids, Emerald Rapids", 143, 207),
    _intel("Intel Granite Rapids, Sierra Forest", 173, 174, 175),
    _amd("AMD Bulldozer to Excavator", 21),
    _amd("AMD Zen, Zen 2", 23),
    _amd("AMD Zen 3, Zen 4", 25),
    _amd("AMD Zen 5", 26),
)
"""Known generations. None is ``mixed``: a pair needs equal processors unless the operator's file says otherwise."""


def read_groups(text: str) -> tuple[Group, ...]:
    """Groups of an operator's file (TOML), in front of the known ones::

        [[group]]
        name = "our Xeons"
        vendor = "GenuineIntel"
        families = [6]
        models = [85, 106]   # left out: all
        mixed = true         # pairs across these models, where the flags are the same

    :raises ValueError: not understood
    """
    try:
        entries = tomllib.loads(text).get("group", [])
        own = tuple(
            Group(str(each["name"]), str(each["vendor"]), frozenset(map(int, each["families"])),
                  frozenset(map(int, each["models"])) if "models" in each else None, bool(each.get("mixed", False)))
            for each in entries
        )  # fmt: skip
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return own + GROUPS


def group_of(cpu: Cpu, groups: Iterable[Group] = GROUPS) -> Group | None:
    """The first group that has this processor."""
    return next((group for group in groups if group.has(cpu)), None)


def alike(one: str, other: str, one_mixed: str = "", other_mixed: str = "") -> bool:
    """Whether two fingerprints can make a pair: equal, or of one group that may be mixed and with the same flags."""
    same_flags = one.rpartition("/")[2] == other.rpartition("/")[2]
    return one == other or (bool(one_mixed) and one_mixed == other_mixed and same_flags)
