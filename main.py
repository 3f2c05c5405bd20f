"""Parse, launch, dispatch on --mode."""

import logging
import sys
from collections.abc import Sequence
from functools import partial

from evaluators.options import EvaluationOptions, PeriodicEvaluationOptions
from launch.agents.restart import agree_on_start
from launch.options import LaunchOptions
from launch.start import become_rank
from trainers.systems import SHARED, SYSTEMS, find_system
from util.command_line import parse
from util.config import Catalogue, Config
from util.errors import EXIT_USAGE, UsageError
from util.lock import lock_of
from util.run_options import RunOptions

OPTIONS = Catalogue((*SHARED, LaunchOptions, EvaluationOptions, PeriodicEvaluationOptions), SYSTEMS, find_system)


def parse_config(argv: Sequence[str]) -> Config:
    """The configuration of a command line. Raises as ``util.command_line.parse``."""
    return parse(argv, OPTIONS)


def main(argv: list[str]) -> int:
    """The exit code: 0 finished, 75 stopped with a snapshot on disk, 1 failed, 2 usage."""
    try:
        config = parse_config(argv)
        options, run = config[LaunchOptions], config[RunOptions]
        place = become_rank([sys.executable, __file__, *argv], options, run, config.flat())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for note in config.notes if place.rank == 0 else ():
        logging.info("note: %s", note)
    from evaluators.run import PeriodicEvaluation, evaluate  # torch takes seconds, and the agent does not need it
    from launch.worker import run_rank
    from trainers.run import load_model, train

    work = partial(train, PeriodicEvaluation, agree_on_start) if run.trains else partial(evaluate, load_model)
    return run_rank(options, place, partial(work, config), lock_of(run, config[EvaluationOptions].eval_folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
