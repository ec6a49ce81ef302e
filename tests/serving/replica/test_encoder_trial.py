"""A new version whose encoder would crash or hang the process that serves: its slot fails, and the live version goes on."""

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.contract.encoder import EncoderFolder
from serving.contract.graph_check import GraphCheck
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.versions.encoder_trial import EncoderTrial
from tests.serving.contract.test_graph_check import CRASHES, HANGS
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront
from tests.tiny import tiny_encoder


class Recorded:
    """Checks in a child process and keeps what was checked."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, path: Path, runtime: Runtime, inputs: np.ndarray) -> None:
        self.names.append(f"{path.parent.name}/{name}")
        GraphCheck()(name, path, runtime, inputs)


def test_only_encoders_that_are_new_to_a_serving_process_are_checked(tmp_path: Path) -> None:
    folders = []
    for seed in range(3):
        tiny_encoder(tmp_path / f"seed-{seed}", seed=seed, words=True)
        folders.append(EncoderFolder(tmp_path / f"seed-{seed}"))
    check = Recorded()
    trial = EncoderTrial(check)
    for seed in (0, 0, 1, 0, 1):
        trial(folders[seed], "student.fp32", ONNXRUNTIME)
    assert check.names == ["seed-1/student.fp32", "seed-1/text.fp32"]
    (tmp_path / "seed-2" / "text.fp32.onnx").unlink()
    with pytest.raises(Exception, match=r"text.fp32.onnx"):
        trial(folders[2], "student.fp32", ONNXRUNTIME)


@pytest.mark.parametrize(
    ("command", "seconds", "sentence"),
    [(CRASHES, 60.0, "died of SIGSEGV"), (HANGS, 0.5, "did not open and run once within 0.5 s")],
    ids=["crashes", "hangs"],
)
def test_a_version_whose_encoder_crashes_or_hangs_does_not_disturb_what_is_live(
    store: Storefront, command: tuple[str, ...], seconds: float, sentence: str
) -> None:
    app = open_app(store)
    slots = app.state.replica.slots
    slots.opener.trial.check = GraphCheck(seconds, command=command)
    store.point(green="2", live="2")
    slots.refresh()
    green = slots.describe()["slots"]["green"]
    assert green["state"] == "failed"
    assert green["reason"].startswith("student.fp32 in onnxruntime: ")
    assert sentence in green["reason"]
    with TestClient(app) as client:
        product, photo = next(iter(store.photos.items()))
        answer = client.post("/v1/search", files={"image": ("p.jpg", photo)}).json()
        assert answer["version"]["index"] == "1"
        assert product in [r["product_id"] for r in answer["results"]]
    slots.opener.trial.check = GraphCheck()
    slots.slots["green"].failed_at = float("-inf")
    slots.refresh()
    assert slots.live.version == "2", "once it opens, it goes live"
