"""Graphs that cannot be opened, at export: without fp16 a version is whole, without fp32 or int8 there is none."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError
from serving.contract.graph_check import GraphCheck
from serving.contract.runtimes import Runtime
from tasks.catalog.snapshot import Snapshot
from tasks.encoder.evaluate.card import card
from tasks.encoder.evaluate.evaluate import evaluate_encoder
from tasks.encoder.evaluate.gates import EncoderPolicy, encoder_gates
from tasks.encoder.export.export import check_folder, export_encoder
from tests.encoder.conftest import Exported
from tests.graphs import write_once
from tests.serving.contract.test_graph_check import CRASHES, HANGS

pytestmark = pytest.mark.slow


class Failing:
    """Keeps what was to be checked; the variants of `fates` meet a child that does not end well, the others none."""

    def __init__(self, **fates: GraphCheck) -> None:
        self.fates = fates
        self.checked: list[str] = []

    def __call__(self, name: str, path: Path, runtime: Runtime, inputs: np.ndarray) -> None:
        self.checked.append(f"{name} in {runtime.name}")
        if fate := self.fates.get(name.replace(".", "_")):
            fate(name, path, runtime, inputs)


def exported_with(snapshot: Snapshot, exported: Exported, place: Path, check: Failing) -> None:
    """Exports the same towers again."""
    with pytest.MonkeyPatch.context() as patch:
        write_once(patch, exported.work / "graphs")
        work, folder = place / "work", place / "encoder"
        export_encoder(snapshot.uri, exported.teacher, exported.student, exported.config, work, folder, check=check)


def test_a_version_without_fp16_is_an_ordinary_version(
    snapshot: Snapshot, exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check = Failing(teacher_fp16=GraphCheck(command=CRASHES), student_fp16=GraphCheck(0.5, command=HANGS))
    exported_with(snapshot, exported, tmp_path, check)
    check_folder(tmp_path / "encoder")
    manifest = EncoderFolder(tmp_path / "encoder").manifest
    kept = {f"{t}.{v} in onnxruntime" for t, variants in manifest.towers.items() for v in variants}
    apart = {f"{t}.fp32 in torch" for t in manifest.towers} | {f"{t}.fp16 in onnxruntime" for t in ("teacher", "student")}
    assert set(check.checked) >= kept | apart, "every graph is opened in a child process first"
    assert not [v for variants in manifest.towers.values() for v in variants if v == "fp16"]
    assert not list((tmp_path / "encoder").glob("*fp16*"))
    sentences = (
        "no fp16 is kept: teacher.fp16 in onnxruntime: the child process that opened the graph died of SIGSEGV",
        "no fp16 is kept: student.fp16 in onnxruntime: the graph did not open and run once within 0.5 s; "
        "the child process was killed (SIGKILL)",
    )
    report = evaluate_encoder(tmp_path / "encoder", snapshot.uri, tmp_path / "work")
    text = card(manifest, report, encoder_gates(report, None, EncoderPolicy()))
    for tower, sentence in zip(("teacher", "student"), sentences, strict=True):
        assert manifest.recipe["notes"][f"{tower}.fp16"] == sentence
        assert f"- {tower}.fp16: {sentence}" in text
        assert f"Ships without {tower}.fp16; the reason is under Export." in text
        assert sentence in caplog.text
    assert manifest.document == exported.manifest.document
    assert report.pair(manifest.query) is not None
    whole = {p.query for p in evaluate_encoder(exported.folder, snapshot.uri, tmp_path / "work").pairs}
    assert {p.query for p in report.pairs} == {q for q in whole if not q.endswith("fp16")}


@pytest.mark.parametrize("name", ["teacher.fp32", "student.fp32", "text.fp32", "student.int8"])
def test_another_graph_that_cannot_be_opened_leaves_no_version(
    snapshot: Snapshot, exported: Exported, tmp_path: Path, name: str
) -> None:
    check = Failing(**{name.replace(".", "_"): GraphCheck(command=CRASHES)})
    sentence = f"^{name} in onnxruntime: the child process that opened the graph died of SIGSEGV$"
    with pytest.raises(ContractError, match=sentence):
        exported_with(snapshot, exported, tmp_path, check)
    with pytest.raises(ContractError, match=r"encoder\.json: no such manifest"):
        EncoderFolder(tmp_path / "encoder")
