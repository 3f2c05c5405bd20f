"""Actions that come back every so many steps."""


def due(step: int, frequency: int, threshold: int = 0) -> bool:
    """Whether a periodic action falls on ``step``, as the published systems count; frequency 0 is never."""
    return frequency > 0 and step >= threshold and step % frequency == 0
