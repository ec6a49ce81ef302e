"""Cost from measured times and a price table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prices:
    """Prices per hour, in one currency. Defaults are round list prices of a general-purpose cloud core and a small GPU machine."""

    core_hour: float = 0.04
    gpu_hour: float = 0.60


@dataclass(frozen=True)
class Work:
    """Measured work: `things` done in `seconds` of wall time on a number of cores and GPUs."""

    things: float
    seconds: float
    cores: float = 1.0
    gpus: float = 0.0


def cost(work: Work, per: float, prices: Prices) -> float:
    """Cost of `per` things at the measured speed; 0 without measurements. Idle time is not counted."""
    if not work.things:
        return 0.0
    hours = work.seconds / 3600 * per / work.things
    return hours * (work.cores * prices.core_hour + work.gpus * prices.gpu_hour)
