"""One HA setting: its name, kind, default, unit and range, and how a word becomes its value. Pure."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Value = str | int | bool
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_YES, _NO = ("on", "true", "yes", "1"), ("off", "false", "no", "0")


class BadSetting(ValueError):
    """A setting that does not exist, or a value it may not have; ``name``, ``detail``."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name, self.detail = name, detail


class Applies(StrEnum):
    """When a change takes effect."""

    NOW = "at once"
    OFF_AND_ON = "when HA is switched off and on"
    NEXT_START = "at the VM's next start"


class Kind(StrEnum):
    """What a value may be."""

    FLAG = "flag"
    CHOICE = "choice"
    NUMBER = "number"
    ADDRESS = "address"
    HOST = "host"
    NETWORKS = "networks"


@dataclass(frozen=True)
class Setting:
    """``default`` is in ``unit``; ``low``..``high`` bound a NUMBER, ``step`` is what it must be a multiple of."""

    name: str
    kind: Kind
    default: Value
    meaning: str
    applies: Applies = Applies.NOW
    unit: str = ""
    low: int = 0
    high: int = 0
    step: int = 1
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        if self.kind is Kind.NUMBER:
            steps = f" in steps of {self.step}" if self.step > 1 else ""
            return f"{self.low}…{self.high}{steps}"
        words = {
            Kind.FLAG: "on | off",
            Kind.CHOICE: " | ".join(self.choices),
            Kind.NETWORKS: "one or more of " + ", ".join(self.choices),
            Kind.ADDRESS: "an IP address",
            Kind.HOST: "a host of the cluster",
        }
        return words[self.kind]

    def parse(self, text: str) -> Value:
        """The value of a word. :raises BadSetting: it is not allowed"""
        return self._checked(_PARSERS[self.kind](self, text.strip()))

    def understand(self, stored: Any) -> Value:
        """A value as it was stored. :raises BadSetting: it is none that this version would have stored"""
        wanted: type = {Kind.FLAG: bool, Kind.NUMBER: int}.get(self.kind, str)
        if type(stored) is not wanted or not isinstance(stored, (bool, int, str)):
            raise BadSetting(self.name, f"{stored!r} is not understood; allowed: {self.allowed}")
        if isinstance(stored, str):
            return self.parse(stored) if stored else ""
        return self._checked(stored)

    def show(self, value: Value) -> str:
        """The value in words, as :meth:`parse` reads it."""
        if self.kind is Kind.FLAG:
            return "on" if value else "off"
        return str(value)

    def _checked(self, value: Value) -> Value:
        if self.kind is Kind.NUMBER and not self.low <= int(value) <= self.high:
            raise BadSetting(self.name, f"{value} is not in {self.allowed}{' ' + self.unit if self.unit else ''}")
        if self.kind is Kind.NUMBER and int(value) % self.step:
            raise BadSetting(self.name, f"{value} is not a multiple of {self.step} {self.unit}".rstrip())
        return value


def _flag(setting: Setting, text: str) -> Value:
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise BadSetting(setting.name, f"{text} is neither on nor off")


def _choice(setting: Setting, text: str) -> Value:
    if text not in setting.choices:
        raise BadSetting(setting.name, f"{text} is none of {setting.allowed}")
    return text


def _number(setting: Setting, text: str) -> Value:
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise BadSetting(
            setting.name, f"{text} is not a whole number; allowed: {setting.allowed} {setting.unit}".rstrip()
        )
    return int(text)


def _address(setting: Setting, text: str) -> Value:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise BadSetting(setting.name, f"{text} is not an IP address") from error
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise BadSetting(setting.name, f"{text} is not the address of one other machine")
    return str(address)


def _host(setting: Setting, text: str) -> Value:
    if not HOST_NAME.fullmatch(text):
        raise BadSetting(setting.name, f"{text} is not a host's name")
    return text


def _networks(setting: Setting, text: str) -> Value:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in setting.choices:
            raise BadSetting(setting.name, f"{word or 'nothing'} is none of {', '.join(setting.choices)}")
    return ",".join(dict.fromkeys(words))


_PARSERS: dict[Kind, Callable[[Setting, str], Value]] = {
    Kind.FLAG: _flag, Kind.CHOICE: _choice, Kind.NUMBER: _number,
    Kind.ADDRESS: _address, Kind.HOST: _host, Kind.NETWORKS: _networks,
}  # fmt: skip
