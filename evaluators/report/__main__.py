"""``python -m evaluators.report WORKDIR... -o report.html``: write the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluators.report.page import make_page
from evaluators.report.records import read_runs
from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError
from util.files import write_text


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluators.report",
        description="One page about a run, or about several side by side: results, curves, samples over time, settings "
        "(differences first) and what each run went through. The file needs no network and nothing beside it.",
    )
    parser.add_argument("workdir", type=Path, nargs="+", help="folder of a run; it may still be training")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="file to write [%(default)s]")
    arguments = parser.parse_args(argv)
    try:
        output = arguments.output.expanduser()
        if not output.parent.is_dir() or output.is_dir():
            raise UsageError(f"-o {output}: name a file in a folder that is there")
        page = make_page(read_runs([folder.expanduser() for folder in arguments.workdir]))
        try:
            write_text(output, page)
        except OSError as error:
            raise UsageError(f"-o {output}: cannot be written ({error.strerror}); name another file") from None
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    n_runs = len(arguments.workdir)
    print(f"{output}: {n_runs} {'run' if n_runs == 1 else 'runs'}, {len(page) / 2**20:.1f} MiB")
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
