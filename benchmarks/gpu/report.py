"""What was found, as Markdown and as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

FAILED, SKIPPED = "FAILED", "not measured: time is up"


@dataclass
class Table:
    """Rows of one kind.

    Attributes:
        title: what they are.
        note: how it was measured, and what the tolerance is.
        rows: by column.
        failures: what has to hold and does not, a line each.
    """

    title: str
    note: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"## {self.title}", "", self.note, ""]
        if columns:
            lines += [_line(columns), _line(["---"] * len(columns))]
            lines += [_line([_text(row.get(name, "")) for name in columns]) for row in self.rows]
        return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine(device: torch.device) -> dict[str, str]:
    """On what it was measured."""
    found = {"torch": torch.__version__, "python": platform.python_version(), "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    else:
        found["threads"] = str(torch.get_num_threads())
    return found


def write_report(folder: Path, device: torch.device, tables: list[Table]) -> str:
    """Write ``gpu.md`` and ``gpu.json``; the Markdown."""
    on = machine(device)
    heading = [
        "# What works on this device, and how fast",
        "",
        ", ".join(f"{key} {value}" for key, value in on.items()),
    ]
    text = "\n".join([*heading, *(f"\n{table.markdown()}" for table in tables)]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text(text)
    content = {"machine": on, "tables": [asdict(table) for table in tables]}
    (folder / "gpu.json").write_text(json.dumps(content, indent=1))
    return text
