"""`unixent backends`: which there are, and what each can do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import unixent
from unixent.protocol import Capabilities, Device
from unixent.registry import BackendStatus
from unixent_native import instruction_set

# In the order in which a person looks for them.
DTYPES = ("float16", "bfloat16", "float32", "float64")
FLAGS = {
    "linear": "fused linear",
    "parallel": "parallel",
    "position_stats": "statistics",
    "parallel_position_stats": "split statistics",
}


def backends() -> None:
    """List the backends: installed or not, versions, devices, what each can do. Loads the installed ones."""
    console = Console(emoji=False)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 1, 0))
    for heading in ("backend", "version", "devices"):
        table.add_column(heading, no_wrap=True)
    table.add_column("takes and does")
    for status in unixent.backends():
        loaded: BackendStatus | str = status
        if status.installed:
            with console.status(f"loading {status.name}"):
                loaded = _load(status.name)
        if isinstance(loaded, str):
            table.add_row(f"[red]{escape(status.name)}[/red]", status.version, "", f"[red]{escape(loaded)}[/red]")
        elif loaded.capabilities is None:
            hint = f"not installed: [bold]{escape(loaded.hint or '')}[/bold]"
            table.add_row(f"[dim]{escape(loaded.name)}[/dim]", "[dim]-[/dim]", "[dim]-[/dim]", hint)
        else:
            devices = loaded.devices or ()
            kernels = "\n".join(f"{escape(device.name)} [dim]by {escape(device.kernel)}[/dim]" for device in devices)
            does = _summary(loaded.capabilities, devices)
            table.add_row(f"[green]{escape(loaded.name)}[/green]", loaded.version, kernels, does)
    console.print(table, highlight=False)
    console.print(f"native kernel: {instruction_set() or 'not in use'}", highlight=False)


def _load(name: str) -> BackendStatus | str:
    """The full row of an installed backend, or why it cannot be loaded: a broken framework must not hide the others."""
    try:
        return unixent.backends(name)[0]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _summary(capabilities: Capabilities, devices: Sequence[Device]) -> str:
    dtypes = [dtype for dtype in DTYPES if dtype in capabilities.dtypes]
    targets = [f"{target} targets" for target in sorted(capabilities.targets)]
    flags = [text for name, text in FLAGS.items() if getattr(capabilities, name)]
    invariant = [escape(device.name) for device in devices if device.batch_invariant]
    if invariant:
        everywhere = len(invariant) == len(devices)
        flags.append("batch invariant" if everywhere else f"batch invariant on {', '.join(invariant)}")
    lines = (dtypes, targets, sorted(capabilities.transforms), flags)
    return "\n".join(", ".join(line) for line in lines if line)
