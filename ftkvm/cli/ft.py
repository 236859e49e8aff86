"""``ftkvm enable``, ``turn-off``, ``status``."""

import time
from typing import Any
from urllib.parse import quote

import click
from rich.console import Group
from rich.text import Text

from ftkvm.cli.client import AgentClient
from ftkvm.cli.output import Reporter, make_table, output_option, watch_document
from ftkvm.ports import Json

_COLUMNS = (
    "VM",
    "RUNS",
    "HOST",
    "FT",
    "SECONDARY",
    "ITS CPU, MEMORY",
    "EPOCH",
    "CHECKPOINT",
    "LOG MBIT/S",
    "LAST FAILOVER",
)
_SLOW = (
    "its second copy follows slowly (lockstep interval {seconds} s) and slows the VM: look at the load of the "
    "secondary's host and at the FT network"
)


@click.command()
@click.argument("vm")
@click.option("--secondary", metavar="HOST", help="Host of the second copy; otherwise the best that can.")
@output_option
def enable(vm: str, secondary: str | None, output: str) -> None:
    """Turn fault tolerance on for VM, or on again after `disable`, and return when it is protected.

    A VM that is off is checked now, and protected when it is started. Disks that FT refuses as they are get converted
    first (see `vm prepare`); the old images stay.
    """
    reporter = Reporter(output)
    client = AgentClient()
    operation = client.call("POST", f"/v1/vms/{quote(vm)}/ft/enable", {"secondary": secondary}, 40.0)
    done = client.wait(operation, reporter)
    pair = _protected_pair(client, vm)
    if pair.get("reason") == "vm-not-running":
        converted = "".join(f"\n{each}; the old image stays" for each in (done["result"] or {}).get("converted", ()))
        reporter.result({**done, "pair": pair}, f"VM {done['vm']}: {pair['shown_as']}. {done['text']}.{converted}")
        return
    took = round((done["ended_at"] or time.time()) - done["started_at"], 2)
    text = f"VM {done['vm']}: {pair.get('shown_as', 'enabled')}; secondary on {pair.get('secondary_host')} ({took} s)."
    reporter.result({**done, "pair": pair}, text)


@click.command(name="turn-off")
@click.argument("vm")
@output_option
def turn_off(vm: str, output: str) -> None:
    """Turn fault tolerance off: the second copy goes, the disks are merged back, the VM runs on."""
    reporter = Reporter(output)
    client = AgentClient()
    done = client.wait(client.call("POST", f"/v1/vms/{quote(vm)}/ft/turn-off", {}, 30.0), reporter)
    reporter.result(done, f"VM {done['vm']}: FT is off.")


@click.command()
@click.argument("vm")
@output_option
def disable(vm: str, output: str) -> None:
    """Stop protecting VM, but keep its FT settings and the secondary's place; `enable` protects it again."""
    reporter = Reporter(output)
    client = AgentClient()
    done = client.wait(client.call("POST", f"/v1/vms/{quote(vm)}/ft/disable", {}, 30.0), reporter)
    reporter.result(done, f"VM {done['vm']}: FT is disabled; the VM runs on unprotected.")


@click.group()
def test() -> None:
    """Try a protected VM's pair on purpose, and measure it."""


@test.command()
@click.argument("vm")
@output_option
def failover(vm: str, output: str) -> None:
    """Kill the primary of VM: the secondary takes over, and a new secondary is made.

    Shows the gap that was predicted, and the one that was measured.
    """
    reporter = Reporter(output)
    done = _tried(vm, "failover", reporter)
    said = done["result"]
    text = (
        f"VM {done['vm']}: {said['from']} gave it up, {said['to']} runs it. Gap: {_ms(said['measured_gap_ms'])} "
        f"(predicted {_ms(said['predicted_gap_ms'])}): noticed after {_ms(said['detection_ms'])}, "
        f"decided {_ms(said['arbitration_ms'])} later, live {_ms(said['promote_ms'])} after it was noticed. "
    )
    reporter.result(done, text + _again(said["secondary_host"], said["reprotect_s"]))


@test.command(name="restart-secondary")
@click.argument("vm")
@output_option
def restart_secondary(vm: str, output: str) -> None:
    """Kill the secondary of VM: the primary goes on, and a new secondary is made."""
    reporter = Reporter(output)
    done = _tried(vm, "restart-secondary", reporter)
    said = done["result"]
    text = (
        f"VM {done['vm']}: the secondary on {said['ended_on']} was ended; alone after {_ms(said['alone_after_ms'])}. "
    )
    reporter.result(done, text + _again(said["secondary_host"], said["unprotected_s"]))


def _tried(vm: str, what: str, reporter: Reporter) -> Json:
    client = AgentClient()
    return client.wait(client.call("POST", f"/v1/vms/{quote(vm)}/ft/test/{what}", {}, 30.0), reporter)


def _ms(value: float | None) -> str:
    return "not known" if value is None else f"{value:.0f} ms"


def _again(host: str | None, seconds: float | None) -> str:
    if seconds is None:
        return "It is not protected again yet: `ftkvm status` shows why."
    return f"Protected again after {seconds} s, with the secondary on {host}."


@click.command()
@click.argument("vm", required=False)
@click.option("--watch", is_flag=True, help="Go on showing it, every second, until interrupted.")
@output_option
def status(vm: str | None, watch: bool, output: str) -> None:
    """Show the VMs with the state of their pairs: all, or one."""
    reporter = Reporter(output)
    client = AgentClient()
    path = "/v1/status" + (f"?vm={quote(vm)}" if vm else "")
    if not watch:
        _show_once(reporter, client.call("GET", path))
    elif reporter.json:
        while True:
            reporter.document(client.call("GET", path))
            time.sleep(1.0)
    else:
        watch_document(reporter, lambda: client.call("GET", path, timeout_s=5.0), _render)


def _show_once(reporter: Reporter, document: Json) -> None:
    if reporter.json:
        reporter.document(document)
    else:
        reporter.out.print(_render(document))


def _protected_pair(client: AgentClient, vm: str) -> dict[str, Any]:
    """The pair's status; the agent looks at it now and then only, so give it a moment to see what it has done."""
    deadline = time.monotonic() + 3.0
    while True:
        found = client.call("GET", f"/v1/status?vm={quote(vm)}")["vms"]
        pair = dict(found[0]["pair"] or {}) if found else {}
        settled = pair.get("state") == "protected" or pair.get("reason") == "vm-not-running"
        if settled or time.monotonic() > deadline:
            return pair
        time.sleep(0.1)


def _render(document: Json) -> Group:
    vms = document["vms"]
    parts: list[Any] = [make_table(_COLUMNS, [_row(entry) for entry in vms]) if vms else Text("No VM is registered.")]
    for entry in vms:
        pair = entry["pair"] or {}
        if entry["ft"] and pair.get("cause"):
            parts.append(Text(f"{entry['name']}: {pair['cause']}", style="yellow"))
        if pair.get("step"):
            parts.append(Text(f"{entry['name']}: {pair['operation']}: {pair['step']}"))
    for entry in vms:
        pair = entry["pair"] or {}
        if pair.get("lockstep") in ("yellow", "red"):
            parts.append(Text(f"{entry['name']}: {_SLOW.format(seconds=pair['lockstep_interval_s'])}", style="yellow"))
        for warning in pair.get("warnings", []):
            parts.append(Text(f"{entry['name']}: {warning}", style="yellow"))
    for error in document["silent_hosts"].values():
        parts.append(Text(f"{error['code']} {error['text']}", style="red"))
    return Group(*parts)


def _row(entry: Json) -> tuple[object, ...]:
    pair = entry["pair"]
    runs = (entry["name"], entry["state"], entry["host"])
    no_copy = (None,) * 5
    if pair is None:
        return (*runs, "off" if not entry["ft"] else "on, no copy answers", *no_copy, None)
    failover = _failover(pair.get("last_failover"))
    if not entry["ft"] and not entry.get("ft_disabled"):
        return (*runs, "off", *no_copy, failover)
    interval = pair.get("checkpoint_interval_ms")
    return (
        *runs,
        pair.get("shown_as") or pair.get("state"),
        pair.get("secondary_host"),
        _usage(pair),
        pair.get("epoch") or None,
        " ".join(filter(None, (f"{interval} ms" if interval else None, pair.get("lockstep")))) or None,
        pair.get("log_bandwidth_mbit_s"),
        failover,
    )


def _usage(pair: Json) -> str | None:
    """What the secondary takes of its host (FT-10)."""
    cpu, memory = pair.get("secondary_cpu_mhz"), pair.get("secondary_memory_mb")
    return None if memory is None else f"{'?' if cpu is None else cpu} MHz, {memory} MB"


def _failover(failover: object) -> str | None:
    if not isinstance(failover, dict) or not failover:
        return None
    at = failover.get("at")
    when = time.strftime("%H:%M:%S", time.localtime(float(at))) if isinstance(at, int | float) else ""
    times = [f"{key[:-3]} {value} ms" for key, value in failover.items() if key.endswith("_ms") and value is not None]
    return " ".join([when, ", ".join(times)]).strip() or None
