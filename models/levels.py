"""What any network that works at several resolutions asks of its settings."""

from __future__ import annotations

from typing import Protocol

from util.errors import UsageError


class _Levels(Protocol):
    @property
    def image_size(self) -> int: ...

    @property
    def ch_mult(self) -> tuple[int, ...]: ...

    @property
    def attn_resolutions(self) -> tuple[int, ...]: ...

    @property
    def resolutions(self) -> list[int]: ...


def check_levels(settings: _Levels, positive: tuple[str, ...]) -> None:
    """Refuse levels that the image cannot be halved to, or attention at none of them.

    Args:
        settings: of any network that works at several resolutions.
        positive: names of numbers that have to be at least 1.

    Raises:
        UsageError: one line that names the option.
    """
    for name in positive:
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} is {getattr(settings, name)}; it has to be at least 1")
    if not settings.ch_mult or min(settings.ch_mult) < 1:
        raise UsageError(f"ch_mult is {list(settings.ch_mult)}; give one multiplier of at least 1 for each level")
    factor = 2 ** (len(settings.ch_mult) - 1)
    if settings.image_size % factor:
        raise UsageError(
            f"image_size {settings.image_size} cannot be halved {len(settings.ch_mult) - 1} times, as the "
            f"{len(settings.ch_mult)} levels of ch_mult ask for; use a multiple of {factor} or fewer levels"
        )
    for resolution in settings.attn_resolutions:
        if resolution not in settings.resolutions:
            raise UsageError(
                f"attn_resolutions: {resolution} does not occur with image_size {settings.image_size} and "
                f"{len(settings.ch_mult)} levels; choose among {', '.join(map(str, settings.resolutions))}"
            )


def n_groups(channels: int) -> int:
    """Number of groups into which the group norms of these networks split ``channels``."""
    return min(channels // 4, 32)
