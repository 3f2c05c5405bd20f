"""Parse, launch, dispatch on --mode."""

import logging
import sys

from launch.agents.agent import Agent
from launch.agents.beat import live_with_agent
from launch.places.topology import find_topology, rank_place
from util.config import parse_config
from util.errors import EXIT_USAGE, UsageError


def main(argv: list[str]) -> int:
    """The exit code: 0 finished, 75 stopped with a snapshot on disk, 1 failed, 2 usage."""
    try:
        config = parse_config(argv)
        place = rank_place(config.launch)
        if place is None:
            command = [sys.executable, __file__, *argv]
            return Agent(command, find_topology(config.launch), config).run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    live_with_agent(config.launch.rank_timeout)  # before torch is imported, which can take long on a shared disk
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from evaluators.run import evaluate  # torch takes seconds to import, and the agent does not need it
    from launch.worker import run_rank
    from trainers.run import train

    return run_rank(config, place, train if config.run.trains else evaluate)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
