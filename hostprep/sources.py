"""Where a host's apt gets its packages: backports, where QEMU comes from, from the same mirror as Debian. Pure.

Debian's installer leaves backports out. What is written is the host's own source of Debian with another suite: mirror,
keys and options are the operator's. Source: sources.list(5).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SUITE = "trixie"
BACKPORTS_SUITE = f"{SUITE}-backports"
FILE = "/etc/apt/sources.list.d/ftkvm-backports.sources"
_NAMES = {SUITE: BACKPORTS_SUITE, "stable": "stable-backports"}
"""What Debian 13 is called in a source: by name, or by what it was when it was installed."""
_MARK = "==sources=="
_DIRECTORY = "/etc/apt/sources.list.d"
COMMAND = (
    f"cat /etc/apt/sources.list {_DIRECTORY}/*.list 2>/dev/null; echo {_MARK};"
    f" for f in {_DIRECTORY}/*.sources; do [ $f = {FILE} ] || cat $f 2>/dev/null; echo; done"
)
"""Both of apt's forms: one line each, then stanzas. Our own file is left out: it follows from the others."""
_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(\S.*)")
_IN_STANZAS = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
"""What a line's options are called in a stanza, where it is another word."""
_OWN_FIELDS = ("Types", "URIs", "Suites", "Components", "Enabled")


@dataclass(frozen=True)
class Source:
    """Packages (not their sources) of some suites. ``options``: as in a stanza: ``Signed-By``, ``Trusted`` …"""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


def parse(text: str) -> tuple[Source, ...]:
    """What :data:`COMMAND` printed. Sources that are switched off, or on a disc, are none."""
    lines, _mark, stanzas = text.partition(_MARK)
    found = (*_of_lines(lines), *_of_stanzas(stanzas))
    return tuple(each for each in found if not all(uri.startswith("cdrom:") for uri in each.uris))


def _of_lines(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.partition("#")[0].strip()):
            given, uri, suite, components = match.groups()
            pairs = (option.partition("=") for option in (given or "").split())
            options = {_IN_STANZAS.get(k, k.title()): value.replace(",", " ") for k, _equals, value in pairs}
            yield Source((uri,), (suite,), tuple(components.split()), options)


def _of_stanzas(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        words = _fields(stanza)
        if "deb" in words.get("Types", "").split() and words.get("Enabled", "yes").lower() not in ("no", "false"):
            uris, suites, components = (tuple(words.get(name, "").split()) for name in ("URIs", "Suites", "Components"))
            yield Source(uris, suites, components, {k: v for k, v in words.items() if k not in _OWN_FIELDS})


def _fields(stanza: str) -> dict[str, str]:
    """Of a deb822 stanza; a field's further lines (a key in it, say) are kept as they are."""
    lines = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
    pairs = re.findall(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)$", lines, re.M)
    return dict(pairs)


def has_backports(sources: Sequence[Source]) -> bool:
    """Whether apt looks for packages in backports."""
    return any(set(each.suites) & set(_NAMES.values()) for each in sources)


def debian(sources: Sequence[Source]) -> Source | None:
    """Where Debian itself comes from, as far as can be told; others name their suites after Debian's, too."""
    named = [each for each in sources if set(each.suites) & set(_NAMES) and "main" in each.components]
    updated = {uri for each in sources if f"{SUITE}-updates" in each.suites for uri in each.uris}
    sure = [each for each in named if set(each.uris) & updated or "debian-archive" in each.options.get("Signed-By", "")]
    return next(iter((*sure, *named)), None)


def files(sources: Sequence[Source]) -> dict[str, tuple[bytes, int]]:
    """The file that adds backports, as a wish has files; none if they are there, or Debian comes from nowhere."""
    found = debian(sources)
    if found is None or has_backports(sources):
        return {}
    options = "".join(f"{key}: {value}\n" for key, value in found.options.items())
    text = (
        "# Written by `ftkvm host add`: QEMU is from backports, by the host's own way to Debian.\n"
        f"Types: deb\nURIs: {' '.join(found.uris)}\nSuites: {BACKPORTS_SUITE}\nComponents: main\n{options}"
    )
    return {FILE: (text.encode(), 0o644)}
