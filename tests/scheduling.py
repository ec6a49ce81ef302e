"""Which tests share a worker, and in which order they start. `make test` runs four workers (pytest-xdist).

The tests of one group run one after the other in one worker, so that a server or session fixture that they share is started once.
A group is named by the module's mark `xdist_group`; else it is the folder of the conftest.py that the module uses; else the module.

xdist's own `--dist loadgroup` does not do it here: xdist 3.8.0 tells its groups by `Item._nodeid`, which pytest 9.2 does not read
any more, and then every test is a group of its own.
"""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
LONGEST = (
    "encoder", "dags/test_in_process", "pipelines/test_refresh_index", "index", "pipelines/test_train_encoder", "plugins/board",
    "pipelines/test_stream", "compatibility", "pipelines/test_unlabelled", "serving/replica", "catalog/changes/test_kills",
    "embed/test_job", "airflow", "cli", "pipelines/test_separate_workers", "release/promotion/test_killed_promotions",
    "serving", "serving/cluster", "registry/test_authentication", "pipelines/test_reembedding",
)  # fmt: skip
"""The groups that take longest, the longest first, so that no worker is left with one while the others idle."""
MARK = re.compile(r"mark\.xdist_group\(\"([\w.]+)\"\)")


@cache
def group(module: Path) -> str:
    """The group of a module's tests."""
    text = module.read_text()
    if mark := MARK.search(text):
        return mark[1]
    folders = (f for f in module.parents if f.is_relative_to(HERE) and f != HERE)
    shared = next((f for f in folders if (f / "conftest.py").exists()), module.with_suffix(""))
    return str(shared.relative_to(HERE))


def place(module: Path) -> int:
    """Where in the order a module's tests start."""
    name = group(module)
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


class GroupScheduling(LoadScopeScheduling):
    """Gives a worker that is free the next group."""

    def _split_scope(self, nodeid: str) -> str:
        return group(HERE.parent / nodeid.partition("::")[0])
