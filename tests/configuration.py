"""Configurations of tests."""

from __future__ import annotations

from typing import Any

from main import parse_config
from util.config import Config
from util.option_values import written


def configured(**options: Any) -> Config:
    """The configuration of options by their flags."""
    return parse_config([f"--{name}={written(value)}" for name, value in options.items()])
