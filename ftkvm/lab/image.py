"""Builds the hosts' disk image with debootstrap, once per recipe.

Mirror, proxy and certificates are the machine's own.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import recipe
from ftkvm.lab.names import IMAGES
from ftkvm.lab.system import mounts_below, run

Progress = Callable[[str], None]
_SH = ["/bin/sh", "-ec"]


def image_path() -> Path:
    """Where the image of the present recipe is, or will be."""
    return IMAGES / recipe.recipe_hash()


def ensure_image(progress: Progress) -> Path:
    """The image of the present recipe, built if it is not there (a few minutes, about 1 GB)."""
    done = image_path()
    if not done.exists():
        _build(done, progress)
    return done


def machine_mirror(apt: Path = Path("/etc/apt")) -> str | None:
    """The Debian mirror this machine's apt uses; None if it names none (debootstrap then takes its default)."""
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".sources":
            pairs = _deb822_pairs(text)
        else:
            pairs = re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", text, re.M)
        for uri, suite in pairs:
            if re.fullmatch(r"(bookworm|trixie|forky|sid|stable|testing)(-updates)?", suite):
                return str(uri)
    return None


def _deb822_pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.M))
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes") == "no":
            continue
        pairs += [(uri, suite) for uri in fields.get("URIs", "").split() for suite in fields.get("Suites", "").split()]
    return pairs


def _build(done: Path, progress: Progress) -> None:
    for rest in IMAGES.glob("*.partial"):  # a killed build
        remove_tree(rest)
    part = done.with_suffix(".partial")
    part.mkdir(parents=True)
    try:
        progress("image: debootstrap (1/4)")
        _debootstrap(part)
        borrowed = lend_apt_config(part)
        run(["mount", "-t", "proc", "proc", str(part / "proc")])
        try:
            progress("image: packages (2/4)")
            _install(part)
        finally:
            run(["umount", str(part / "proc")])
        progress("image: guest kernel and settings (3/4)")
        for path in borrowed:
            path.unlink(missing_ok=True)
        _settle(part)
        progress("image: check (4/4)")
        _check(part)
        part.rename(done)
    except BaseException:
        remove_tree(part)
        raise


def _debootstrap(root: Path) -> None:
    mirror = machine_mirror()
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(recipe.BASE_PACKAGES)}",
        recipe.SUITE,
        str(root),
        *([mirror] if mirror else []),
    ]
    try:
        run(command, timeout_s=900)
    except FtkvmError as error:
        raise FtkvmError("FTKVM-705", detail=error.params["detail"]) from error


def lend_apt_config(root: Path) -> list[Path]:
    """Gives the image this machine's way to the mirror for the time of the build; returns what to take out again."""
    borrowed = []
    conf = Path("/etc/apt/apt.conf.d")
    for file in conf.iterdir() if conf.exists() else []:
        if file.is_file() and "acquire" in file.read_text(errors="replace").lower():
            target = root / "etc/apt/apt.conf.d" / f"lent-{file.name}"
            shutil.copyfile(file, target)
            borrowed.append(target)
    if Path("/etc/resolv.conf").exists():
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        lent = root / "etc/apt/lent.crt"
        shutil.copyfile(authorities, lent)
        told = root / "etc/apt/apt.conf.d/lent-zz-authorities"
        told.write_text(f'Acquire::https::CaInfo "/{lent.relative_to(root)}";\n')
        borrowed += [lent, told]
    fast = root / "etc/dpkg/dpkg.cfg.d/lent-fast"
    fast.write_text(
        "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n"
        "path-exclude=/usr/share/locale/*\n"
    )
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no daemon starts while packages are installed
    policy.chmod(0o755)
    return [*borrowed, fast, policy, root / "etc/resolv.conf"]


def _install(root: Path) -> None:
    sources = (root / "etc/apt/sources.list").read_text().split()
    mirror = sources[sources.index("deb") + 1]
    (root / "etc/apt/sources.list.d/backports.list").write_text(f"deb {mirror} {recipe.SUITE}-backports main\n")
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8", HOME="/root")
    install = "apt-get install -qq -y --no-install-recommends"
    kernel = f"$(apt-cache depends {recipe.KERNEL_PACKAGE} | awk '/Depends: linux-image-/{{print $2; exit}}')"
    script = (
        f"apt-get update -qq; {install} {' '.join(recipe.VIRT_PACKAGES)}; "
        f"{install} -t {recipe.SUITE}-backports {' '.join(recipe.BACKPORTS_PACKAGES)}; "
        f"cd /tmp; apt-get download -qq {kernel}; dpkg -x linux-image-*.deb /; rm linux-image-*.deb; "
        "apt-get clean; rm -rf /var/lib/apt/lists/*"
    )
    try:
        run(["chroot", str(root), *_SH, script], timeout_s=1200, env=env)
    except FtkvmError as error:
        raise FtkvmError("FTKVM-705", detail=error.params["detail"]) from error


def _settle(root: Path) -> None:
    for name, content in recipe.FILES.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    with (root / "etc/libvirt/qemu.conf").open("a") as conf:
        conf.write(recipe.LIBVIRT_QEMU_CONF)
    with (root / "etc/libvirt/libvirtd.conf").open("a") as conf:
        conf.write(recipe.LIBVIRTD_CONF)
    for name in recipe.DISABLED_UNITS:
        unit = root / "etc/systemd/system" / name
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")
    for directory in ("srv/ftkvm", ".ftlab/datastore", "root/.ssh"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "etc/libvirt/qemu/networks/autostart/default.xml").unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each host gets its own
    (root / "etc/machine-id").write_text("")
    run(["chroot", str(root), "systemctl", "enable", "--quiet", "ftlab-datastore.service", "libvirtd.service", "ssh"])


def _check(root: Path) -> None:
    said = run(["chroot", str(root), "qemu-system-x86_64", "--version"])
    found = re.search(r"version (\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < recipe.QEMU_MINIMUM:
        raise FtkvmError("FTKVM-705", detail=f"QEMU in the image is too old: {said.splitlines()[0]}")
    if not list((root / "boot").glob("vmlinuz-*")):
        raise FtkvmError("FTKVM-705", detail="no guest kernel in the image")


def remove_tree(path: Path) -> None:
    """Removes a tree of the lab's own, after unmounting what hangs in it (never through a mount)."""
    for point in mounts_below(path):
        run(["umount", "-l", str(point)])
    shutil.rmtree(path, ignore_errors=False)
