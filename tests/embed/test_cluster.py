"""The same job on a real standalone cluster, one of whose workers is killed in the middle."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.embed import job
from tasks.embed.cluster import running_cluster
from tasks.embed.job import EmbedConfig, embed_snapshot
from tasks.embed.spark import send_folder
from tasks.embed.store import EmbeddingStore
from tests.embed.shop import encoder, shop, snapshot
from tests.servers import free_port

pytestmark = pytest.mark.slow


def test_a_worker_killed_in_the_middle_does_not_fail_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send_and_delete(*given: Any) -> str:
        """Executors on another machine do not see the driver's folder."""
        sent = send_folder(*given)
        shutil.rmtree(tmp_path / "encoder")
        return sent

    monkeypatch.setattr("tasks.embed.cluster.START_S", 300.0)
    monkeypatch.setattr(job, "send_folder", send_and_delete)
    taken = snapshot(shop(tmp_path / "shop", 200), tmp_path / "store")
    encoder(tmp_path / "encoder")
    with running_cluster(tmp_path / "cluster", free_port()) as cluster:
        victim = cluster.workers[0]

        def kill() -> None:
            # Not below all of tmp_path: folders of Spark that are gone before they are looked into would end this thread.
            end = time.monotonic() + 300
            while not list((tmp_path / "store" / "embeddings").rglob("_commits/part-*.json")):
                assert time.monotonic() < end, "no chunk is committed"
                time.sleep(0.01)
            os.killpg(victim.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        config = EmbedConfig(spark_master=cluster.url, chunk=8, batch=8, spark=(("spark.executor.memory", "512m"),))
        result = embed_snapshot(taken, tmp_path / "encoder", "1", str(tmp_path / "store"), "r1", tmp_path / "work", config)
        killer.join(timeout=60)
        assert victim.wait(timeout=60) == -signal.SIGKILL, "the worker was killed while the job ran"
    assert (result.embedded, result.quarantined, result.embedded_now) == (200, 0, 200)
    known = EmbeddingStore(result.store_uri, 16).checksums().to_pylist()
    assert len(known) == len(set(known)) == 200
