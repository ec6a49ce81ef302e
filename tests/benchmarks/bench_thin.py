"""How thin serving is: `.[serving,cpu]` in an empty environment, its size, what it pulls, and how long a start takes to import.

    python -m tests.benchmarks.bench_thin [--out build/bench]

Prints megabytes (all, and the largest packages), the processor time of `import serving.app` (the best of five fresh processes), and whether
anything heavy came along. Writes thin.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "pyspark", "airflow", "mlflow", "great_expectations", "onnx", "pandas", "scipy", "sklearn")
IMPORT = "import time; t = time.process_time(); import serving.app; print(time.process_time() - t)"


def installed(folder: Path, requirement: str = ".[serving,cpu]") -> Path:
    """A fresh environment with the project; gives its Python."""
    uv = shutil.which("uv") or str(ROOT / "build" / "uv" / "bin" / "uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [uv, "pip", "install", "-q", "--python", str(python), "-c", str(ROOT / "constraints.txt"), requirement]
    subprocess.run(command, check=True, cwd=ROOT)
    return python


def size_mib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 2**20


def measure(python: Path) -> dict:
    packages = next((python.parents[1] / "lib").glob("python3*/site-packages"))
    sizes = {p.name: size_mib(p) for p in packages.iterdir() if p.is_dir()}
    listed = subprocess.run([python, "-c", _names()], capture_output=True, text=True, check=True).stdout.split()
    took = [float(subprocess.run([python, "-c", IMPORT], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    return {
        "mib": sum(sizes.values()), "largest": dict(sorted(sizes.items(), key=lambda s: -s[1])[:8]), "distributions": len(listed),
        "heavy": sorted(set(listed) & {h.replace("_", "-") for h in HEAVY}), "import_s": min(took),
    }  # fmt: skip


def _names() -> str:
    return "from importlib.metadata import distributions as d; print(' '.join(x.metadata['Name'].lower().replace('_', '-') for x in d()))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thin-") as name:
        found = measure(installed(Path(name) / "venv"))
    print(
        f"{found['mib']:.0f} MiB in {found['distributions']} distributions; import serving.app {found['import_s']:.2f} s of processor time"
    )
    print("largest, MiB: " + ", ".join(f"{n} {mib:.0f}" for n, mib in found["largest"].items()))
    print(f"  {'DOES NOT HOLD' if found['heavy'] else 'holds        '} nothing heavy came along {found['heavy'] or ''}")
    (args.out / "thin.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
