"""`make chaos`: a small shop with everything that it runs on, each part killed, paused, cut off and slowed in turn.

    make chaos                                # all faults, about half an hour; writes build/chaos.json
    make chaos ARGS="--only Redis --only MLflow"

Prints a line a fault with its place among all, and exits with 1 where a promised bound did not hold.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.drill import Drill, Seen
from tests.chaos.faults import all_faults
from tests.chaos.stack import nginx, started

MOUNTS = "VITRINE_CHAOS_MOUNTS"
COLUMNS = "{:>7} {:<42} {:>8} {:>7} {:>6} {:>6} {:>9} {:>8} {:>7}  {}"


def in_a_namespace_of_its_own() -> None:
    """Begins again where disks can be mounted that nobody else sees, and that go with this process; where that is not allowed, stays."""
    if MOUNTS in os.environ or os.geteuid() != 0 or not (unshare := shutil.which("unshare")):
        return
    os.environ[MOUNTS] = "1"
    os.execv(unshare, [unshare, "--mount", sys.executable, "-W", "ignore", "-m", "tests.chaos", *sys.argv[1:]])


def show(place: str, seen: Seen) -> None:
    told = "; ".join(seen.broken) or "as promised"
    cells = seen.searches, seen.partial, seen.failed, seen.failed_after, round(seen.slowest_ms), seen.attempts, seen.live_after_s
    print(COLUMNS.format(place, seen.fault, *cells, told), flush=True)
    for error in seen.errors:
        print(f"    an attempt: {error}", flush=True)


def write(path: Path, found: list[Seen]) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    told = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "faults": [s.to_json() for s in found]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="only faults whose name holds this text; may be given again")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"), help="where the table is written")
    chosen = parser.parse_args()
    if not nginx():
        print("nginx was not found: install it, e.g. sudo apt-get install nginx-light", file=sys.stderr)
        return 2
    in_a_namespace_of_its_own()
    faults = [f for f in all_faults(MOUNTS in os.environ) if not chosen.only or any(text in f.name for text in chosen.only)]
    began = time.monotonic()
    with started() as stack:
        drill = Drill(stack)
        drill.open()
        print(f"everything runs after {time.monotonic() - began:.0f} s; {len(faults)} faults", flush=True)
        print(
            COLUMNS.format("", "fault", "searches", "partial", "failed", "after", "worst ms", "attempts", "live s", "bounds"),
            flush=True,
        )
        found = []
        for number, fault in enumerate(faults, 1):
            found.append(drill.meet(fault))
            show(f"{number}/{len(faults)}", found[-1])
            write(chosen.json, found)
    broken = [s.fault for s in found if s.broken]
    told_of = f"{len(broken)} broke a bound: {', '.join(broken)}" if broken else "every bound held"
    searches, failed = sum(s.searches for s in found), sum(s.failed + s.failed_after for s in found)
    print(f"{len(found)} faults in {time.monotonic() - began:.0f} s, {searches} searches, {failed} failed; {told_of}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
