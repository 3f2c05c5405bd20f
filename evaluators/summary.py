"""``python -m evaluators.summary WORKDIR EVAL_FOLDER``: figures of a run and where its pictures are, in a few lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluators.files import read_json
from evaluators.job import RESULTS
from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError
from util.run_file import read_run_file


def summarize(workdir: Path, eval_folder: str) -> str:
    """The summary of one evaluation.

    Raises:
        UsageError: there are no results in that folder.
    """
    path = workdir / eval_folder / RESULTS
    results = read_json(path)
    if results is None:
        raise UsageError(f"{path}: no results; run --mode eval --eval_folder {eval_folder} first")
    run = read_run_file(workdir)
    lines = [f"trained to step {results['checkpoint']['step']} on {run.get('world_size', '?')} ranks"]
    for name, entry in results["results"].items():
        if "value" in entry:
            error = entry.get("standard_error")
            spread = f" +- {error:.3g}" if error is not None else ""
            nfe = f", NFE {entry['nfe']:g}" if "nfe" in entry else ""
            lines.append(f"{name}: {entry['value']:.4g}{spread} {entry['unit']} ({entry['n_samples']} samples{nfe})")
    pictures = [*sorted((workdir / "samples").glob("*.png")), *sorted((workdir / eval_folder).glob("*.png"))]
    lines += ["pictures:", *(f"  {picture}" for picture in pictures)]
    lines.append(f"curves: .venv/bin/tensorboard --logdir {workdir / 'tensorboard'}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluators.summary", description="Figures and pictures of a run.")
    parser.add_argument("workdir", type=Path, help="folder of the run")
    parser.add_argument("eval_folder", help="folder of the evaluation inside workdir")
    arguments = parser.parse_args(argv)
    try:
        print(summarize(arguments.workdir, arguments.eval_folder))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
