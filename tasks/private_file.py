"""Files that only their owner may read."""

import os
import tempfile
from pathlib import Path


def write_private(path: Path, text: str) -> Path:
    """Writes a file with mode 0600 atomically (mkstemp and rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path
