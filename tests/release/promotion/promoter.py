"""A promotion in a process of its own that is killed at one of its writes; children come from a server that has MLflow loaded."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from typing import Any

WRITES = ("set_alias", "tag_version", "set_model_tag", "delete_model_tag")


def server() -> ForkServerContext:
    """Where children are forked from: a fresh process without threads, that imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mlflow", "mlflow.artifacts", "tasks.pipelines.promote_index", "tests.release.promotion.promoter"]
    )
    return context


def run(environ: Mapping[str, str], action: str, version: str, holder: str, kill_at: str = "", lasts_s: float = 3.0) -> None:
    """Promotes `version`, or rolls back to it; "before 3" or "after 3" kills this process with SIGKILL at its write number 3.

    "before alias live" and "after tag bake" name the write by what it writes instead.
    """
    from tasks.pipelines import promote_index, rollback_index
    from tasks.registry import Registry
    from tasks.release.promotion import lease

    os.environ.update(environ)
    lease.LASTS_S, lease.MARGIN_S = lasts_s, 0.5
    promote_index.HANDOVER_S = lasts_s
    when, _, point = kill_at.partition(" ")
    count = 0

    def killing(name: str) -> Any:
        write = getattr(Registry, name)

        def written(self: Registry, *args: str) -> None:
            nonlocal count
            count += 1
            what = {"set_alias": f"alias {args[1]}", "tag_version": f"tag {args[2] if len(args) > 2 else ''}"}.get(name, "")
            here = point in (str(count), what)
            if here and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, *args)
            if here and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        return written

    for name in WRITES:
        setattr(Registry, name, killing(name))
    act = promote_index.promote if action == "promote" else lambda version, holder: rollback_index.roll_back(holder, version)
    try:
        act(version, holder)
    except lease.LeaseExpired:  # a lease this short runs out on a busy machine; Airflow tries again, too
        act(version, holder)
