"""What a rank leaves behind when it fails, so that its agent can show the one cause among many consequences."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from util.errors import RunFailed, UsageError

FOLDER_VARIABLE = "SCOREFLEET_REPORTS"
_CONSEQUENCES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket Timeout",
    "failed to pass monitoredBarrier",
    "Timed out waiting",
)


@dataclass(frozen=True)
class FailureReport:
    """One rank's failure.

    Attributes:
        kind: "usage" (exit code 2), "failed" (a reason for the user) or "error" (with a traceback).
        consequence: the error says only that another rank went away.
    """

    rank: int
    host: str
    time: float
    kind: str
    message: str
    traceback: str
    consequence: bool

    def text(self) -> str:
        """What the user sees."""
        if self.kind == "usage":
            return f"error: {self.message}"
        if self.kind == "failed":
            return f"rank {self.rank} on {self.host}: {self.message}"
        return f"{self.traceback}rank {self.rank} on {self.host} failed: {self.message}"


def report_of(error: BaseException, rank: int) -> FailureReport:
    """The report of an exception that ended a rank."""
    kind = "usage" if isinstance(error, UsageError) else "failed" if isinstance(error, RunFailed) else "error"
    message = " ".join(str(error).split()) or type(error).__name__
    text = "" if kind != "error" else "".join(traceback.format_exception(error))
    consequence = kind == "error" and any(mark in message for mark in _CONSEQUENCES)
    return FailureReport(rank, socket.gethostname(), time.time(), kind, message, text, consequence)


def write_report(report: FailureReport) -> bool:
    """Leave the report for the agent; False where there is no agent (torchrun)."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return False
    path = Path(folder) / f"rank_{report.rank}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(report)))
    temporary.replace(path)
    return True


def read_reports(folder: Path) -> list[FailureReport]:
    """Every report in the folder, causes before consequences, then the earliest first."""
    reports = [FailureReport(**json.loads(path.read_text())) for path in folder.glob("rank_*.json")]
    return sorted(reports, key=lambda report: (report.consequence, report.time))
