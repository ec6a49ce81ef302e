"""Measurements of speed that take as long as they are given, cut short: what tests look at does not depend on their figures."""

import pytest

from tasks.embed import sample_pace
from tasks.release.gates import load_test


def measure_briefly(patch: pytest.MonkeyPatch) -> None:
    """Lets each version's load test, and the sample that an embedding's plan is made of, end after some searches and one batch."""
    patch.setattr(load_test, "SECONDS", 0.05)
    patch.setattr(sample_pace, "SAMPLE_S", 0.05)
