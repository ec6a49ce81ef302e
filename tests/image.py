"""What the serving image sets for the process that runs in it."""

import re
from pathlib import Path

DOCKERFILE = Path(__file__).parents[1] / "docker" / "Dockerfile.serving"


def allocator_settings() -> dict[str, str]:
    """The image's variables that glibc and Arrow read at the start of a process: where memory comes from, and when it goes back."""
    return dict(re.findall(r"\b(MALLOC_\w+|ARROW_\w+)=(\w+)", DOCKERFILE.read_text()))
