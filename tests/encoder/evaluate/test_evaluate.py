"""The evaluation of an exported version, and the gates that follow from it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.contract.encoder import EncoderFolder
from serving.contract.provenance import Origin
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.data.photos import TrainingSet, read_training_set
from tasks.encoder.evaluate.baselines import colour_histograms
from tasks.encoder.evaluate.evaluate import EncoderReport, PairReport, Recall, evaluate_encoder, pairs_of
from tasks.encoder.evaluate.exact_search import search_photos, search_titles, title_queries
from tasks.encoder.evaluate.gates import EncoderPolicy, encoder_gates
from tasks.encoder.evaluate.report import write_report
from tasks.encoder.evaluate.retrieval_metrics import ranks
from tasks.encoder.evaluate.speedup import FASTER, measure_speedup
from tasks.errors import TrainingError
from tests.encoder.conftest import PRODUCTS, Exported, draw_catalogue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(snapshot: Snapshot, exported: Exported) -> EncoderReport:
    return evaluate_encoder(exported.folder, snapshot.uri, exported.work)


@pytest.fixture(scope="module")
def training(snapshot: Snapshot) -> TrainingSet:
    return read_training_set(snapshot.uri)


def test_every_variant_and_both_baselines_are_measured_on_every_held_out_photo(report: EncoderReport, exported: Exported) -> None:
    queries = {p.query for p in report.pairs}
    assert {"teacher.fp32", "student.fp32", "colour_histogram", "untrained"} <= queries
    assert exported.manifest.query in queries
    for pair in report.pairs:
        if pair.asked == "photos":
            assert len(pair.ranks) == len(report.photos) == PRODUCTS
        assert pair.mrr.value == pytest.approx(np.mean([1 / r for r in pair.ranks]))
        assert all(1 <= r <= PRODUCTS for r in pair.ranks)
        for k, figure in ((1, "recall_at_1"), (5, "recall_at_5"), (10, "recall_at_10")):
            found = pair.recall[figure]
            assert found.value == pytest.approx(np.mean([r <= k for r in pair.ranks]))
            assert found.low <= found.value <= found.high


def test_a_histogram_finds_flat_colours(report: EncoderReport) -> None:
    pair = report.pair("colour_histogram")
    assert pair is not None
    assert pair.recall["recall_at_1"].value > 0.8


def test_the_raw_results_hold_what_came_back(report: EncoderReport, training: TrainingSet, exported: Exported) -> None:
    path = next((exported.work / "raw").glob("*.npz"))
    raw = np.load(path)
    ranks, best = (raw[f"teacher.fp32.on.teacher.fp32.photos.{name}"] for name in ("ranks", "best"))
    assert best.shape == (PRODUCTS, 10)
    pair = report.pair("teacher.fp32")
    assert pair is not None
    assert tuple(ranks.tolist()) == pair.ranks
    assert tuple(raw["photos"].tolist()) == report.photos
    products = dict(zip(training.held_out().uris, training.held_out().products, strict=True))
    for photo, rank, came in zip(report.photos, ranks, best, strict=True):
        if rank <= 10:  # no two drawn products are equally similar here
            assert raw["product_ids"][came[rank - 1]] == training.product_ids[products[photo]]


def test_every_figure_follows_from_the_raw_results(report: EncoderReport, exported: Exported) -> None:
    assert pairs_of(next((exported.work / "raw").glob("*.npz")), report.categories) == report.pairs


def test_the_towers_cross_and_products_never_trained_on_are_asked_for(
    report: EncoderReport, training: TrainingSet, exported: Exported
) -> None:
    crossed = {(p.query, p.document) for p in report.pairs if p.asked == "photos"}
    assert {("student.fp32", "teacher.fp32"), ("student.fp32", "student.fp32"), ("teacher.fp32", "teacher.fp32")} <= crossed
    assert {(exported.manifest.query, "teacher.fp32"), ("untrained", "untrained")} <= crossed
    for query in ("teacher.fp32", exported.manifest.query):
        pair = report.pair(query, asked="unseen")
        assert pair is not None
        assert len(pair.ranks) == len(training.split("unseen")) > 0
    assert report.unseen_products == len(set(training.split("unseen").products.tolist()))


def test_titles_find_their_pictures_and_each_title_asks_once(report: EncoderReport) -> None:
    pair = report.pair("text.fp32", asked="titles")
    assert pair is not None
    assert len(pair.ranks) == PRODUCTS


def test_a_title_of_several_products_may_find_any_of_them() -> None:
    titles, shown = ("red mug", "blue bag", "red mug", "", "shoe"), np.asarray([True, True, True, True, False])
    names, number = title_queries(titles, shown)
    assert names == ["blue bag", "red mug"]
    assert number.tolist() == [1, 0, 1, -1, -1]
    xb = np.eye(5, dtype=np.float32)
    xq = np.asarray([[0.9, 0.1, 0, 0, 0], [0.5, 0.6, 0.7, 0, 0.9]], np.float32)
    found = search_titles(xq, xb, shown, number)
    assert found.ranks.tolist() == [2, 1]
    assert found.precision.tolist() == pytest.approx([0.5, (1 / 1 + 2 / 3) / 2])
    assert found.products.tolist() == [1, 2]
    assert found.best[1, 0] == 2


def test_search_in_blocks_finds_what_one_matrix_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    xq, xb = rng.standard_normal((23, 8)).astype(np.float32), rng.standard_normal((50, 8)).astype(np.float32)
    products, good, shown = rng.integers(0, 50, 23), rng.random(23) < 0.8, rng.random(50) < 0.9
    whole = search_photos(xq, xb, shown, products, good)
    monkeypatch.setattr("tasks.encoder.evaluate.exact_search.BLOCK_VALUES", 150)
    parts = search_photos(xq, xb, shown, products, good)
    similarity = np.where(shown, xq[good] @ xb.T, -np.inf)
    assert parts.ranks.tolist() == whole.ranks.tolist() == ranks(similarity, products[good]).tolist()
    assert np.array_equal(parts.best, np.argsort(-similarity, axis=1, kind="stable")[:, :10])


def test_the_query_encoder_is_timed_beside_the_teacher(exported: Exported) -> None:
    opened = EncoderFolder(exported.folder)
    same = measure_speedup(opened, "teacher.fp32", "teacher.fp32")
    assert 0.3 < same < 3


def test_twice_gives_the_same_report_and_it_survives_json(report: EncoderReport, snapshot: Snapshot, exported: Exported) -> None:
    assert evaluate_encoder(exported.folder, snapshot.uri, exported.work) == report
    assert EncoderReport.model_validate_json(report.model_dump_json()) == report
    assert report.flat()["teacher.fp32.on.teacher.fp32.recall_at_1"] >= 0


def test_without_held_out_photos_there_is_nothing_to_measure(exported: Exported, tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=3)
    photos = folder / "photos.csv"
    photos.write_text(photos.read_text().replace(",val", ",train"))
    found = take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    with pytest.raises(TrainingError, match="has neither held-out photos nor views"):
        evaluate_encoder(exported.folder, found.uri, tmp_path / "work")


def test_histograms_are_unit_vectors_of_eight_levels() -> None:
    black_and_white = np.zeros((1, 4, 4, 3), np.uint8)
    black_and_white[0, :, 2:] = 255
    found = colour_histograms(black_and_white)
    assert found.shape == (1, 512)
    assert found[0, 0] == pytest.approx(np.sqrt(0.5))
    assert found[0, 511] == pytest.approx(np.sqrt(0.5))


def made(ranks: dict[str, list[int]], query: str = "student.fp32", **metrics: float) -> EncoderReport:
    """A report with these ranks; photos come by turns from the categories a and b."""
    pairs, half = [], Recall(value=0.5, low=0.4, high=0.6)
    for name, found in ranks.items():
        document = "teacher.fp32" if "." in name else name
        shares = {f"recall_at_{k}": float(np.mean([r <= k for r in found])) for k in (1, 5, 10)}
        recall = {f: Recall(value=v, low=v, high=v) for f, v in shares.items()}
        pairs.append(PairReport(query=name, document=document, recall=recall, mrr=half, map=half, slices={}, ranks=tuple(found)))
    n = len(next(iter(ranks.values())))
    good = {"teacher.fp32.parity_max_difference": 1e-6, "teacher.parameters": 400.0, "student.parameters": 100.0, FASTER: 4.0}
    return EncoderReport(
        encoder="made",
        query=query,
        document="teacher.fp32",
        content_sha256="0" * 64,
        split="val",
        products=50,
        photos=tuple(f"{i}.jpg" for i in range(n)),
        categories=tuple("ab"[i % 2] for i in range(n)),
        pairs=tuple(pairs),
        metrics=good | metrics,
    )


GOOD = [1] * 90 + [30] * 10
POOR = [1] * 5 + [30] * 95
BASE = {"teacher.fp32": GOOD, "student.fp32": GOOD, "colour_histogram": POOR, "untrained": POOR}


@pytest.mark.parametrize(
    ("change", "metrics", "query", "failing"),
    [
        ({}, {}, "student.fp32", set()),
        ({"student.fp32": [1] * 84 + [30] * 16}, {}, "student.fp32", {"student_recall"}),
        ({"student.int8": [1] * 88 + [30] * 12}, {}, "student.int8", {"int8_recall"}),
        ({"colour_histogram": GOOD}, {}, "student.fp32", {f"beats_colour_histogram_recall_at_{k}" for k in (1, 10)}),
        ({"untrained": [1] * 95 + [30] * 5}, {}, "student.fp32", {f"beats_untrained_recall_at_{k}" for k in (1, 10)}),
        ({}, {"student.fp32.parity_max_difference": 0.01}, "student.fp32", {"parity"}),
        ({}, {"student.parameters": 101.0}, "student.fp32", {"student_size"}),
        ({}, {FASTER: 1.4}, "student.fp32", {"student_speed"}),
    ],
)
def test_each_gate_fails_for_its_own_reason(
    change: dict[str, list[int]], metrics: dict[str, float], query: str, failing: set[str]
) -> None:
    gates = encoder_gates(made(BASE | change, query, **metrics), None, EncoderPolicy())
    assert {g.name for g in gates if not g.passed} == failing
    assert all(g.reason for g in gates)


ALL = [1] * 12


@pytest.mark.parametrize(
    ("ours", "histogram", "failing", "words"),
    [
        (ALL, ALL, set(), "1.000 of a colour histogram; both answer all, which passes"),
        ([1] * 90 + [30] * 10, [1] * 60 + [5] * 30 + [30] * 10, set(), "; a tie here, and Recall@1 is more, which passes"),
        ([1] * 50 + [5] * 45 + [30] * 5, [1] * 50 + [5] * 40 + [30] * 10, set(), "0.900 of a colour histogram"),
        (GOOD, GOOD, {1, 10}, "0.900 of a colour histogram"),
        ([1] * 50 + [5] * 40 + [30] * 10, [1] * 60 + [5] * 30 + [30] * 10, {1, 10}, "0.900 of a colour histogram"),
    ],
)
def test_a_tie_with_a_baseline_is_decided_by_the_other_k(
    ours: list[int], histogram: list[int], failing: set[int], words: str
) -> None:
    """Of a shop of a dozen products, colours may find all: more cannot be asked."""
    report = made({"teacher.fp32": ours, "student.fp32": ours, "colour_histogram": histogram})
    gates = {g.name: g for g in encoder_gates(report, None, EncoderPolicy())}
    assert {k for k in (1, 10) if not gates[f"beats_colour_histogram_recall_at_{k}"].passed} == failing
    assert gates["beats_colour_histogram_recall_at_10"].reason.endswith(words)


SENTENCES = [
    (
        "beats_untrained_recall_at_10",
        "Recall@10 on photos: 0.900, which must be more than the 0.050 of the same encoder before training",
    ),
    ("beats_colour_histogram_recall_at_1", "Recall@1 on photos: 0.900, which must be more than the 0.050 of a colour histogram"),
    ("student_recall", "The student's Recall@10 as a share of the teacher's: 100.0% (at least 95.0% is required)"),
    ("parity", "Largest difference between the outputs of ONNX and PyTorch: 1e-06 (at most 0.0001 is allowed)"),
    ("student_size", "The teacher's parameters divided by the student's: 4.00 (at least 4.00 is required)"),
    ("student_speed", "Speed of student.fp32 relative to the teacher, one picture at a time: 4.00x (at least 2.00x is required)"),
    (
        "champion_recall",
        "Recall@10 against the champion's on 100 photos: +0.000 (95 % interval +0.000 to +0.000); at most 0.02 may be lost",
    ),
    (
        "champion_slices",
        "Recall@10 against the champion's in the worst category, a (50 photos): +0.000 (95 % interval +0.000 to +0.000); at most 0.10 may "
        "be lost, more only if it may be chance",
    ),
]


@pytest.mark.parametrize(("name", "sentence"), SENTENCES)
def test_each_gate_says_what_was_measured_and_what_is_required(name: str, sentence: str) -> None:
    gates = encoder_gates(made(BASE), made(BASE), EncoderPolicy())
    assert next(g.reason for g in gates if g.name == name) == sentence


def test_a_failed_gate_names_the_setting_of_its_limit() -> None:
    gates = encoder_gates(made(BASE | {"student.fp32": [1] * 84 + [30] * 16}), None, EncoderPolicy())
    reason = next(g.reason for g in gates if g.name == "student_recall")
    assert reason.endswith("(at least 95.0% is required) [setting: VITRINE_MIN_STUDENT_RECALL]")


def test_nothing_is_asked_about_a_student_of_a_version_without_one() -> None:
    ranks = {"teacher.fp32": GOOD, "colour_histogram": POOR}
    report = made(ranks, "teacher.fp32").model_copy(update={"towers": ("teacher",)})
    gates = encoder_gates(report, None, EncoderPolicy())
    assert {g.name for g in gates} == {"beats_colour_histogram_recall_at_1", "beats_colour_histogram_recall_at_10", "parity"}
    assert all(g.passed for g in gates)


@pytest.mark.parametrize(("right", "passes"), [(90, True), (88, False)])
def test_a_version_without_a_student_that_serves_in_int8_keeps_the_recall_of_its_fp32(right: int, passes: bool) -> None:
    ranks = {"teacher.fp32": GOOD, "teacher.int8": [1] * right + [30] * (100 - right), "colour_histogram": POOR}
    report = made(ranks, "teacher.int8").model_copy(update={"towers": ("teacher",)})
    assert {g.name: g.passed for g in encoder_gates(report, None, EncoderPolicy())}["int8_recall"] is passes


@pytest.mark.parametrize(
    ("start", "failing"),
    [
        ([1] * 90 + [30] * 10, set()),
        ([1] * 95 + [30] * 5, {"pretrained_recall"}),
        ([1 if i < 90 and i % 2 else 30 for i in range(90)] + [1] * 10, set()),
        ([1 if i % 2 == 0 or i < 40 else 30 for i in range(100)], {"pretrained_slices"}),
    ],
)
def test_a_fine_tuned_version_keeps_what_its_pretrained_start_found(start: list[int], failing: set[str]) -> None:
    ours = [1 if i % 2 or i < 60 else 30 for i in range(100)] if "pretrained_slices" in failing else GOOD
    ranks = {"teacher.fp32": ours, "student.fp32": ours, "colour_histogram": POOR, "pretrained": start}
    gates = encoder_gates(made(ranks), None, EncoderPolicy())
    assert {g.name for g in gates if not g.passed} == failing
    said = next(g.reason for g in gates if g.name == "pretrained_recall")
    assert said.startswith("Recall@10 against that of its pretrained start on 100 photos: ")
    assert not {g.name for g in gates if "untrained" in g.name}


def test_nothing_is_asked_about_a_student_that_serves_no_queries() -> None:
    ranks = BASE | {"student.fp32": POOR, "teacher.int8": GOOD}
    gates = encoder_gates(made(ranks, "teacher.int8"), None, EncoderPolicy())
    assert all(g.passed for g in gates)
    assert not {g.name for g in gates if g.name.startswith("student")}


def test_a_version_with_a_teacher_alone_is_measured_judged_and_reported(
    snapshot: Snapshot, exported: Exported, tmp_path: Path
) -> None:
    """As of pretrained weights: no student, no text tower, no recipe, no training curves."""
    folder = shutil.copytree(exported.folder, tmp_path / "encoder")
    update = {
        "towers": {"teacher": exported.manifest.towers["teacher"]}, "query": "teacher.fp32", "tokenizer": None, "recipe": {},
        "trained": "none", "origin": Origin(name="a published network", tag="1.0", licence="Apache-2.0"),
    }  # fmt: skip
    manifest = exported.manifest.model_copy(update=update)
    (folder / "encoder.json").write_text(manifest.to_json())
    (folder / "training.json").unlink()
    report = evaluate_encoder(folder, snapshot.uri, tmp_path / "work")
    assert report.towers == ("teacher",)
    assert {p.query for p in report.pairs} == {*manifest.names(), "colour_histogram"}
    gates = encoder_gates(report, report, EncoderPolicy())
    assert not {g.name for g in gates} & {"student_recall", "student_size", "student_speed", "beats_untrained_recall_at_1"}
    page = write_report(folder, report, gates, snapshot.uri, tmp_path / "work", tmp_path / "report")
    assert not (page.parent / "training.png").exists()
    card = (page.parent / "card.md").read_text()
    assert "Weights: a published network, tag 1.0, licence Apache-2.0." in card
    assert "It cannot be asked with words." in card
    assert "Distillation" not in card
    assert "None" not in card


def test_a_candidate_worse_than_the_champion_is_held_back() -> None:
    champion = made(BASE)
    slightly = made(BASE | {"student.fp32": [1] * 89 + [30] * 11})
    worse = made(BASE | {"student.fp32": [1] * 87 + [30] * 13})
    policy = EncoderPolicy(student_share=0.9)
    assert all(g.passed for g in encoder_gates(slightly, champion, policy))
    failed = {g.name for g in encoder_gates(worse, champion, policy) if not g.passed}
    assert failed == {"champion_recall"}
    lenient = replace(policy, champion_margin=0.05)
    assert all(g.passed for g in encoder_gates(worse, champion, lenient))


def test_a_category_that_got_much_worse_fails_though_the_whole_did_not() -> None:
    champion = made(BASE | {"student.fp32": [1, 30] * 50})
    candidate = made(BASE | {"student.fp32": [1 if i % 2 or i < 70 else 30 for i in range(100)]})
    failed = [g for g in encoder_gates(candidate, champion, EncoderPolicy(student_share=0)) if not g.passed]
    assert [g.name for g in failed] == ["champion_slices"]
    assert "worst category, a" in failed[0].reason


def test_a_small_category_that_lost_by_chance_does_not_hold_a_candidate_back() -> None:
    champion = made(BASE | {"student.fp32": [1, 30] * 50})
    losing = [0, 2, 4, 6, 8, 10]
    gaining = [1, 3, 5, 7]
    candidate = made(
        BASE | {"student.fp32": [30 if i in losing else 1 if i in gaining or i % 2 == 0 else 30 for i in range(100)]}
    )
    policy = EncoderPolicy(student_share=0, slice_margin=0.03)
    lost = {g.name: g for g in encoder_gates(candidate, champion, policy)}["champion_slices"]
    assert lost.value < -policy.slice_margin
    assert not lost.passed  # six of fifty, none gained: that is no chance
    champion = made(BASE | {"student.fp32": [30 if i in (20, 22, 24) else 1 for i in range(100)]})
    candidate = made(BASE | {"student.fp32": [30 if i in losing[:5] else 1 for i in range(100)]})
    chance = {g.name: g for g in encoder_gates(candidate, champion, policy)}["champion_slices"]
    assert chance.value < -policy.slice_margin
    assert chance.passed
    assert "95 %" in chance.reason


def test_a_champion_measured_on_other_photos_is_no_measure() -> None:
    champion = made(BASE).model_copy(update={"photos": tuple(f"other-{i}.jpg" for i in range(100))})
    failed = [g for g in encoder_gates(made(BASE), champion, EncoderPolicy()) if not g.passed]
    assert [g.name for g in failed] == ["champion_recall"]
    assert "not evaluated on any of these photos" in failed[0].reason


def test_photos_of_a_deleted_product_are_left_out_of_the_figures_and_told(exported: Exported, tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop")
    products = folder / "products.csv"
    products.write_text("".join(line for line in products.read_text().splitlines(True) if not line.startswith("p004,")))
    snapshot = take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    report = evaluate_encoder(exported.folder, snapshot.uri, tmp_path / "work", baselines=False)
    assert (len(report.photos), report.products) == (PRODUCTS - 1, PRODUCTS - 1)
    assert all(len(p.ranks) == PRODUCTS - 1 for p in report.pairs if p.asked == "photos")
    page = write_report(exported.folder, report, (), snapshot.uri, tmp_path / "work", tmp_path / "report")
    for text in (page.read_text(), (page.parent / "card.md").read_text()):
        assert "Labelled photos left out because their product is not in the catalogue: 3." in text


def test_the_report_page_shows_the_failures_and_the_card_names_the_figures(
    report: EncoderReport, snapshot: Snapshot, exported: Exported, tmp_path: Path
) -> None:
    gates = encoder_gates(report, None, EncoderPolicy())
    page = write_report(exported.folder, report, gates, snapshot.uri, exported.work, tmp_path / "report")
    assert {p.name for p in page.parent.iterdir()} == {
        "report.html", "training.png", "recall.png", "report.json", "raw.npz", "card.md",
    }  # fmt: skip
    text = page.read_text()
    served = report.pair(report.query)
    assert served is not None
    assert text.count("the photo</figcaption>") == min(12, sum(r > 1 for r in served.ranks))
    assert f"rank {max(served.ranks)} of {PRODUCTS}" in text
    for name in ("training.png", "recall.png"):
        with Image.open(page.parent / name) as picture:
            assert picture.size[0] > 400
    card = (page.parent / "card.md").read_text()
    assert f"{served.recall['recall_at_10'].value:.3f}" in card
    assert all(g.reason in card for g in gates)
    assert "6 steps in fp32 and " in card
