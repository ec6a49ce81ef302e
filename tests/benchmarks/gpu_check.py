"""What this machine's NVIDIA GPU does with our encoders, in at most eight minutes: one JSON, and a line for each row.

    python -m tests.benchmarks.gpu_check [--tiny] [--parts training embedding …] [--out FILE]
    python -m tests.benchmarks.gpu_check --carry build/carried     # before: takes this Python's open_clip along

Runs on the machine's own Python with torch, torchvision and timm; nothing of this project has to be installed. Each part is a
process of its own with a budget of its own: one that crashes or hangs costs the others nothing, and its rows so far count. A part
that cannot run says "not run: why". `--tiny` tries everything on the CPU with a small model; its figures mean nothing. Weights are
random: they change no speed.
"""

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOTAL_S = 480
BUDGET_S = {"training": 75, "embedding": 150, "latency": 75, "onnxruntime": 60, "faiss": 50, "spark": 50}
"""Seconds for each part, its start included: some ten for torch and CUDA."""
CARRY = ("open_clip", "ftfy", "wcwidth", "regex")
"""open_clip and what it needs beyond torch, timm and what these need; regex is compiled for one version of Python."""
KILL_S = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on the CPU with a small model, to try the script")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGET_S), default=list(BUDGET_S))
    parser.add_argument("--carry", type=Path, help="copy open_clip into this folder and stop")
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu_check.json"))
    args = parser.parse_args()
    if args.carry:
        print(f"copied to {args.carry}: {', '.join(carry(args.carry)) or 'nothing, as it is not installed here'}")
        return
    began = time.monotonic()
    result: dict[str, Any] = {"machine": machine(), "tiny": args.tiny, "parts": {}}
    for part in args.parts:
        budget = min(BUDGET_S[part], TOTAL_S - (time.monotonic() - began))
        command = [sys.executable, "-m", "tests.benchmarks.gpu_parts", part, *(["--tiny"] if args.tiny else [])]
        found = run_part(command, budget)
        result["parts"][part] = found
        for line in lines(found):
            print(f"{part}: {line}", flush=True)
    result["seconds"] = time.monotonic() - began
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))
    print(f"{result['seconds']:.0f} s; written to {args.out}")


def run_part(command: Sequence[str], budget_s: float) -> dict[str, Any] | str:
    """`rows` as the process printed them, `seconds`, and `stopped` where it did not end well; "not run: why" without a row."""
    if budget_s <= 0:
        return "not run: the time for all parts is up"
    began, stopped = time.monotonic(), ""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = child.communicate(timeout=budget_s)
        if child.returncode:
            stopped = (err.strip().splitlines() or [f"it ended with status {child.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate(timeout=KILL_S)
        stopped = f"its {budget_s:.0f} s were over"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    why = next((row["not_run"] for row in rows if "not_run" in row), stopped)
    rows = [row for row in rows if "not_run" not in row]
    if not rows:
        return f"not run: {why or 'it printed nothing'}"
    return {"rows": rows, "seconds": time.monotonic() - began} | ({"stopped": why} if why else {})


def lines(found: dict[str, Any] | str) -> list[str]:
    """A part's outcome for people."""
    if isinstance(found, str):
        return [found]
    shown = [", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()) for row in found["rows"]]
    return shown + ([f"stopped: {found['stopped']}"] if "stopped" in found else [])


def machine() -> dict[str, Any]:
    """Which machine and which packages this is."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    try:
        import torch
    except ImportError:
        return found | {"torch": "not installed"}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda or "none", "cores": torch.get_num_threads()}
    for name in ("timm", "torchvision", "open_clip", "onnxruntime", "faiss", "pyspark"):
        found[name] = importlib.util.find_spec(name) is not None
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": about.name, "gpu_gib": about.total_memory / 2**30}
    return found


def carry(folder: Path) -> list[str]:
    """Copies the installed packages of CARRY into a folder; gives their names."""
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for name in CARRY:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(next(iter(spec.submodule_search_locations)), folder / name, dirs_exist_ok=True, ignore=ignored)
            done.append(name)
    return done


if __name__ == "__main__":
    main()
