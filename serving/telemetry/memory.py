"""Memory of this process."""


def resident_bytes() -> int:
    """Resident set size of this process, from /proc; 0 where that is not available."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * 4096
    except OSError:
        return 0
