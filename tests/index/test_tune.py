"""Tuning: exact truth, the cheapest point within the budget, and a clear refusal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.index.recall import DEPTH
from serving.index.searcher import Searcher
from tasks.errors import GateFailed
from tasks.index.choice import Budget
from tasks.index.families import FAMILIES, refine_grid
from tasks.index.ground_truth import GroundTruth, exact_truth, recall_against
from tasks.index.tune import FIRST_PART, TuningRefused, keys_of, stored_truth, tune
from tasks.index.tuning_report import front, tuning_plot, tuning_table
from tests.index.shop import Shop, brute_force, clustered, open_shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def xq() -> np.ndarray:
    return clustered(np.random.default_rng(3), 40, 32)


def test_the_truth_is_brute_force_and_is_kept(wide_shop: Shop, xq: np.ndarray, tmp_path: Path) -> None:
    truth = exact_truth(wide_shop.vectors_uri, wide_shop.shards, xq, tmp_path)
    np.testing.assert_allclose(truth.similarity, brute_force(wide_shop.vectors, xq, DEPTH), atol=1e-5)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = exact_truth(wide_shop.vectors_uri, wide_shop.shards, xq, tmp_path)
    assert (again.keys == truth.keys).all()
    assert file.stat().st_mtime_ns == before
    exact_truth(wide_shop.vectors_uri, wide_shop.shards, xq[:5], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "other queries have another truth"


def test_truth_of_fewer_products_than_its_depth_ends_in_nothing(shop: Shop, xq: np.ndarray, tmp_path: Path) -> None:
    truth = exact_truth(shop.vectors_uri, shop.shards, xq, tmp_path, depth=700)
    assert ((truth.keys >= 0).sum(axis=1) == 600).all()
    assert np.isneginf(truth.similarity[:, 600:]).all()


@pytest.mark.parametrize(
    ("found", "expected"),
    [([[1, 2]], 1.0), ([[2, 1]], 1.0), ([[1, 9]], 0.5), ([[1, 3]], 1.0), ([[-1, -1]], 0.0), ([[9, 8, 1, 2]], 1.0)],
)
def test_recall_counts_ties_and_ignores_order(found: list[list[int]], expected: float) -> None:
    truth = GroundTruth(np.array([[1, 2, 3, 4]]), np.array([[0.9, 0.5, 0.5, 0.1]], np.float32))
    assert recall_against(np.array(found), truth, 2) == expected


def test_the_cheapest_point_that_reaches_the_target_is_chosen(
    wide_shop: Shop, searchers: dict[str, Searcher], xq: np.ndarray, tmp_path: Path
) -> None:
    searcher = searchers["ivf_fs_sq8"]
    truth = exact_truth(wide_shop.vectors_uri, wide_shop.shards, xq, tmp_path)
    tuned = tune(searcher, xq, "ivf_fs_sq8", 0.95, truth)
    good = [t for t in tuned.trials if t["recall_at_10"] >= 0.95]
    assert tuned.chosen == good[0]
    assert tuned.chosen["verdict"].startswith("chosen")
    assert all(t["verdict"] for t in tuned.trials)
    assert sum(t["pareto"] for t in tuned.trials) >= 1
    found = searcher.search(xq, 500, params=tuned.search)
    assert recall_against(keys_of(searcher, found.rows[:, :10]), truth, 10) == tuned.chosen["recall_at_10"]


def test_half_steps_lie_between_the_points_of_a_grid() -> None:
    grid = (
        {"nprobe": 4, "k_factor": 1},
        {"nprobe": 8, "k_factor": 1},
        {"nprobe": 4, "k_factor": 2},
        {"nprobe": 8, "k_factor": 2},
    )
    finer = refine_grid(grid)
    assert all(p in finer for p in grid)
    assert len(finer) == 9
    assert {"nprobe": 6, "k_factor": 1.5} in finer
    assert refine_grid(({},)) == ({},)


def far(n: int) -> np.ndarray:
    """Unit queries near no product: lists matter, and small ones hold too few candidates."""
    xq = np.random.default_rng(4).standard_normal((n, 32)).astype(np.float32)
    return xq / np.linalg.norm(xq, axis=1, keepdims=True)


def test_a_half_step_is_taken_where_it_is_cheaper_and_enough(
    searchers: dict[str, Searcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    xq = far(40)
    searcher, truth = searchers["ivf_flat"], stored_truth(searchers["ivf_flat"], xq)
    steps = tuple({"nprobe": n} for n in (20, 28, 44))
    monkeypatch.setitem(FAMILIES, "ivf_flat", replace(FAMILIES["ivf_flat"], grid=refine_grid(steps)))
    found = {int(t["params"]["nprobe"]): t for t in tune(searcher, xq, "ivf_flat", 0.0, truth).trials}
    recall = {n: t["recall_at_10"] for n, t in found.items()}
    assert recall[20] < recall[24] <= recall[28]
    assert not any(t["again"] for t in found.values())
    monkeypatch.setitem(FAMILIES, "ivf_flat", replace(FAMILIES["ivf_flat"], grid=steps))
    enough = tune(searcher, xq, "ivf_flat", recall[24], truth)
    assert enough.chosen["params"] == {"nprobe": 24}
    assert [t["params"]["nprobe"] for t in enough.trials] == [20, 24, 28, 44], "36 costs more than 28, which is enough"
    assert tune(searcher, xq, "ivf_flat", recall[20], truth).chosen["params"] == {"nprobe": 20}


@pytest.mark.parametrize("family", ["ivf_fs_sq8", "hnsw_sq8", "ivf_pq"])
def test_searches_that_are_repeated_for_finding_too_little_are_counted(family: str, searchers: dict[str, Searcher]) -> None:
    """Few lists or neighbours are no bargain where most queries must then look eight times as wide."""
    xq = far(60)
    tuned = tune(searchers[family], xq, family, 0.0, stored_truth(searchers[family], xq))
    narrow = min(tuned.trials, key=lambda t: list(t["params"].values()))
    assert narrow["again"] > 0.2
    assert narrow["work_us"] > tuned.chosen["work_us"]
    assert tuned.chosen["again"] < narrow["again"]
    assert [t["work_us"] for t in tuned.trials] == sorted(t["work_us"] for t in tuned.trials)
    more = [float(t["verdict"].split()[0]) for t in tuned.trials if "times the work" in t["verdict"]]
    assert more == sorted(more)
    assert more[0] >= 1
    engine = searchers[family].groups[0].engine
    assert type(engine).__module__.startswith("serving."), "the searcher that was given is not touched"


def test_more_neighbours_are_more_work() -> None:
    costs = [FAMILIES["hnsw_sq8"].cost({"ef": ef}, 500, 0.0) for ef in (16, 32, 512, 1024)]
    assert costs == sorted(set(costs))


def test_what_trials_read_is_read_before_any_is_timed(
    searchers: dict[str, Searcher], xq: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    search = Searcher.search

    def spied(self: Searcher, x: np.ndarray, k: int, **how: Any) -> Any:
        asked.append((len(x), how["params"]["nprobe"]))
        return search(self, x, k, **how)

    monkeypatch.setattr(Searcher, "search", spied)
    tune(searchers["ivf_flat"], xq, "ivf_flat", 0.5, stored_truth(searchers["ivf_flat"], xq))
    assert asked[0] == (len(xq), max(probes for _, probes in asked))
    assert all(count == 1 for count, _ in asked[1:])


def test_the_choice_is_the_same_again(wide_shop: Shop, searchers: dict[str, Searcher], xq: np.ndarray, tmp_path: Path) -> None:
    searcher = searchers["ivf_fs_fp16"]
    assert len({str(tune(searcher, xq, "ivf_fs_fp16", 0.9).search) for _ in range(2)}) == 1


def test_a_coded_family_knows_a_good_candidate_list_from_a_good_answer(
    wide_shop: Shop, searchers: dict[str, Searcher], xq: np.ndarray, tmp_path: Path
) -> None:
    searcher = searchers["ivf_pq"]
    truth = exact_truth(wide_shop.vectors_uri, wide_shop.shards, xq, tmp_path)
    with pytest.raises(GateFailed, match=r"no parameters of ivf_pq reach recall@10 0\.950") as refusal:
        tune(searcher, xq, "ivf_pq", 0.95, truth)
    assert "set VITRINE_INDEX_FAMILY=flat or lower VITRINE_RECALL_TARGET" in str(refusal.value), "which suits 12,000 vectors"
    tuned = tune(searcher, xq, "ivf_pq", 0.2, truth)
    assert max(t["within_candidates"] for t in tuned.trials) > 0.95 > max(t["recall_at_10"] for t in tuned.trials)


def test_a_budget_that_nothing_keeps_is_refused(shop: Shop, xq: np.ndarray, tmp_path: Path) -> None:
    searcher = open_shop(shop, tmp_path)
    with pytest.raises(GateFailed, match=r"p99 1e-06 ms"):
        tune(searcher, xq, "flat", 0.95, budget=Budget(p99_ms=1e-6))
    with pytest.raises(GateFailed, match=r"0 MiB are allowed"):
        tune(searcher, xq, "flat", 0.95, budget=Budget(ram_bytes=1000))


def test_flat_needs_no_parameters_and_is_exact(shop: Shop, xq: np.ndarray, tmp_path: Path) -> None:
    searcher = open_shop(shop, tmp_path)
    tuned = tune(searcher, xq, "flat", 1.0, stored_truth(searcher, xq))
    assert tuned.search == {"family": "flat", "candidates": 500}
    assert tuned.chosen["recall_at_10"] == 1.0


def test_several_clients_ask_at_once_and_find_the_same(shop: Shop, xq: np.ndarray, tmp_path: Path) -> None:
    searcher = open_shop(shop, tmp_path)
    one, two = (tune(searcher, xq, "flat", 0.95, budget=Budget(clients=n)) for n in (1, 2))
    assert (one.search, one.chosen["recall_at_10"]) == (two.search, two.chosen["recall_at_10"])
    assert two.clients == 2
    assert two.chosen["qps"] > 0


def test_the_report_names_every_trial_and_every_family(
    wide_shop: Shop, searchers: dict[str, Searcher], xq: np.ndarray, tmp_path: Path
) -> None:
    families = {"ivf_fs_sq8": "chosen: least memory of those that fit", "flat": "would have a p99 of about 280 ms"}
    tuned = replace(tune(searchers["ivf_fs_sq8"], xq, "ivf_fs_sq8", 0.9), families=families)
    table = tuning_table(tuned)
    assert table.count("| nprobe") == len(tuned.trials)
    assert all(t["verdict"] in table for t in tuned.trials)
    assert all(why in table for why in families.values())
    tuning_plot(tuned, tmp_path / "tuning.png", 0.9)
    assert (tmp_path / "tuning.png").read_bytes()[:4] == b"\x89PNG"


def test_a_trial_that_was_cut_short_says_so_and_is_no_pareto_point(searchers: dict[str, Searcher], tmp_path: Path) -> None:
    xq = far(100)
    with pytest.raises(TuningRefused, match="no parameters of ivf_pq reach") as refusal:
        tune(searchers["ivf_pq"], xq, "ivf_pq", 0.95, stored_truth(searchers["ivf_flat"], xq))
    tuned = refusal.value.tuned
    cut = [t for t in tuned.trials if t["queries"] == FIRST_PART]
    assert cut
    assert not any(t["pareto"] for t in cut)
    table = tuning_table(tuned)
    assert f"Refused: {refusal.value}" in table
    assert table.count(f" | {FIRST_PART} | ") == len(cut)
    tuning_plot(tuned, tmp_path / "tuning.png", 0.95)
    before = [{n: v for n, v in t.items() if n not in ("queries", "work_us", "again")} for t in tuned.trials]
    tuning_plot(replace(tuned, trials=before), tmp_path / "of before.png", 0.95)
    assert (tmp_path / "of before.png").read_bytes()[:4] == b"\x89PNG", "reports of before are drawn still"


def test_the_front_of_a_panel_holds_what_no_other_trial_beats_in_both() -> None:
    trials = [
        {"p99_ms": 1.0, "qps": 900.0, "recall_at_10": 0.90},
        {"p99_ms": 2.0, "qps": 950.0, "recall_at_10": 0.95},
        {"p99_ms": 3.0, "qps": 300.0, "recall_at_10": 0.94},
        {"p99_ms": 4.0, "qps": 200.0, "recall_at_10": 0.99},
    ]
    assert front(trials, "p99_ms") == [(1.0, 0.90), (2.0, 0.95), (4.0, 0.99)]
    assert front(trials, "qps") == [(950.0, 0.95), (200.0, 0.99)]


def test_the_truth_of_a_snapshot_and_an_encoder_serves_every_run(wide_shop: Shop, xq: np.ndarray, tmp_path: Path) -> None:
    first = exact_truth(wide_shop.vectors_uri, wide_shop.shards, xq[:4], tmp_path, "snapshot encoder")
    moved = tmp_path / "another run"
    moved.symlink_to(wide_shop.vectors_uri)
    again = exact_truth(str(moved), wide_shop.shards, xq[:4], tmp_path, "snapshot encoder")
    assert (again.keys == first.keys).all()
    assert len(list(tmp_path.glob("truth-*"))) == 1
    exact_truth(str(moved), wide_shop.shards, xq[:4], tmp_path, "snapshot other encoder")
    assert len(list(tmp_path.glob("truth-*"))) == 2
