"""Which tests share a worker, and in which order they start. `make test` runs two workers (pytest-xdist).

The tests of one group run one after the other in one worker, so that a server or session fixture that they share is started once.
A group is named by the module's mark `xdist_group`. Modules that ask for the fixture `mlflow_uri`, or whose conftest.py does, are
the group mlflow. Others are that of the folder of the conftest.py they use, or else of their own folder.

xdist's own `--dist loadgroup` does not do it here: xdist 3.8.0 tells its groups by `Item._nodeid`, which pytest 9.2 does not read
any more, and then every test is a group of its own.
"""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
LONGEST = ("mlflow", "embed", "catalog/changes", "encoder", "compatibility", "airflow", "serving/cluster", "serving/replica")
"""The groups that take longest, the longest first, so that no worker is left with one while the others idle."""
MLFLOW = re.compile(r"\bmlflow_uri: str\b")
MARK = re.compile(r"mark\.xdist_group\(\"([\w.]+)\"\)")


@cache
def group(module: Path) -> str:
    """The group of a module's tests."""
    text = module.read_text()
    if mark := MARK.search(text):
        return mark[1]
    folders = [f for f in module.parents if f.is_relative_to(HERE) and f != HERE]
    folder = next((f for f in folders if (f / "conftest.py").exists()), module.parent)
    conftest = folder / "conftest.py"
    if MLFLOW.search(text) or (conftest.exists() and folder != HERE and MLFLOW.search(conftest.read_text())):
        return "mlflow"
    return str(folder.relative_to(HERE))


def place(module: Path) -> int:
    """Where in the order a module's tests start."""
    name = group(module)
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


class GroupScheduling(LoadScopeScheduling):
    """Gives a worker that is free the next group."""

    def _split_scope(self, nodeid: str) -> str:
        return group(HERE.parent / nodeid.partition("::")[0])
