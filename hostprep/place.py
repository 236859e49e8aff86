"""Where our program and the journal lie on a host, and how what we put there is told from a stranger's. Pure."""

import shlex

PROGRAM = "/opt/ftkvm"
"""A new one is made beside it (``.new``), the one before is kept a while (``.before``)."""
JOURNAL = "/var/lib/ftkvm/prepared"


def strangers(program: str = PROGRAM, journal: str = JOURNAL) -> str:
    """Shell command: names what is where our program goes and was not put there by us.

    safety: these places are replaced and removed as a whole. Ours comes into its place by one rename, and has its
    digest in it; what is beside it may be half made or half removed, but only since there is a journal.
    """
    ours = "[ ! -L $place ] && grep -qxE '[0-9a-f]{64}' $place/.manifest 2>/dev/null"
    name = shlex.quote(program)
    return (
        f"for place in {name} {name}.new {name}.before; do if [ ! -e $place -a ! -L $place ] || {{ {ours}; }}; then :;"
        f" elif [ $place = {name} -o ! -d {shlex.quote(journal)} ]; then echo $place; fi; done"
    )


def remove_program(program: str = PROGRAM) -> str:
    """Shell command: our program goes, by one rename first: cut off in between, none is there that looks like a
    stranger's. A stranger's, put there since, stays."""
    return (
        f"if [ -e {program}/.manifest ]; then rm -rf {program}.new; mv -T {program} {program}.new; fi;"
        f" rm -rf {program}.new"
    )
