"""Packages: what apt newly brought is noted by name, dependencies too, and just that is taken back. Pure."""

import shlex
from collections.abc import Sequence

PREFERENCES = "/etc/apt/preferences.d/ftkvm"
PIN = b"""\
# Written by `ftkvm host add`. QEMU is from backports; its other packages (`apt install qemu-block-extra`) must be
# of the same version, or apt refuses them. Packages that it does not need so new stay Debian's own.
Package: qemu-* python3-qemu-qmp seabios
Pin: release n=trixie-backports
Pin-Priority: 500
"""
"""Source: apt_preferences(5); 500 is the priority of an ordinary release, backports have 100."""
APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"
_NEW = r"sed -n 's/^Inst \([^ ]*\) (.*/\1/p'"
"""Of ``apt-get -s install``: a line of a package that is there already has its version in square brackets first."""
_GOES = r"sed -nE 's/^(Remv|Purg) ([^ ]*) .*/\2/p'"


def install(journal: str, names: Sequence[str], option: str = "") -> str:
    """Shell command: they are installed. What apt brings for it is in the journal before the first of it is there.

    safety: what an earlier run brought is never this step's to undo: its list begins empty.
    """
    words = f"install --no-install-recommends {option}{' '.join(map(shlex.quote, names))}"
    listed, new = shlex.quote(f"{journal}/packages"), shlex.quote(f"{journal}/packages-now")
    return (
        f"set -e; umask 077; : > {new}; apt-get -q update;"
        f" LC_ALL=C apt-get -s {words} > {new}.plan; {_NEW} < {new}.plan > {new};"
        f" rm {new}.plan; touch {listed}; grep -vxFf {listed} {new} >> {listed} || true; sync -f {listed};"
        f" umask 022; {APT} {words}"
    )


def installed(names: Sequence[str]) -> str:
    """Shell command that succeeds when all of them are installed."""
    listed = " ".join(map(shlex.quote, names))
    status = "dpkg-query -W -f '${db:Status-Status}\\n' $p"
    return f"for p in {listed}; do {status} | grep -qx installed || exit 1; done"


def undo(journal: str) -> str:
    """Shell command: what the last :func:`install` brought goes again, and only that."""
    new = shlex.quote(f"{journal}/packages-now")
    return f"[ ! -s {new} ] || {APT.replace('apt-get', f'xargs -r -a {new} apt-get')} remove"


def would_go_too(names: Sequence[str]) -> str:
    """Shell command that prints the other packages that would go with these: something else needs them by now."""
    listed = " ".join(map(shlex.quote, names))
    return f"LC_ALL=C apt-get -s purge {listed} | {_GOES} | grep -vxF {' '.join(f'-e {shlex.quote(n)}' for n in names)}"


def purge(names: Sequence[str]) -> str:
    """Shell command: they are gone, their configuration too."""
    return f"{APT} purge {' '.join(map(shlex.quote, names))}"
