"""What holds for every DAG file: it is light, documented, owned, bounded and tagged."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from tasks.index.engine_collections import BUILD_LIMIT_S, LOAD_LIMIT_S
from tasks.settings import PROJECT

DAGS = (
    "train_encoder",
    "rebuild_index",
    "refresh_index",
    "promote_index",
    "rollback_index",
    "watch_champion",
    "watch_quality",
    "collect_garbage",
)
HEAVY = (
    "torch",
    "torchvision",
    "faiss",
    "pyspark",
    "mlflow",
    "great_expectations",
    "open_clip",
    "timm",
    "onnx",
    "onnxruntime",
    "cv2",
)

CODE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ImportError(f"{name} must not be imported by a DAG file")
sys.meta_path.insert(0, Block())
began = time.process_time()
import airflow.sdk  # Airflow's own start is not the file's
from airflow.sdk import DAG
start = time.process_time() - began
import importlib, importlib.util
def arguments(task):
    if hasattr(task, "op_kwargs_expand_input"):
        return sorted({**task.partial_kwargs["op_kwargs"], **task.op_kwargs_expand_input.value})
    return sorted(getattr(task, "op_kwargs", None) or {})
found = {}
for name in %r:
    began = time.process_time()
    module = importlib.import_module(f"dags.{name}")
    took = time.process_time() - began
    dag = next(v for v in vars(module).values() if isinstance(v, DAG)) if any(isinstance(v, DAG) for v in vars(module).values()) else None
    if dag is None:
        dag = getattr(module, name)()
    found[name] = {
        "seconds": took, "start": start, "dag_id": dag.dag_id, "doc": dag.doc_md or "", "description": dag.description or "",
        "tags": sorted(dag.tags), "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "defaults": dag.params.validate(),
        "schemas": {n: p.schema | {"description": p.description} for n, p in dag.params.items()},
        "tasks": {t.task_id: {"owner": t.owner, "retries": t.retries,
                              "timeout": bool(t.execution_timeout or getattr(t, "response_timeout", 0)),
                              "seconds": t.execution_timeout.total_seconds() if t.execution_timeout else 0,
                              "upstream": sorted(t.upstream_task_ids), "doc": t.doc_md or "", "arguments": arguments(t)}
                  for t in dag.tasks},
        "groups": {g: sorted(n.children) for g, n in dag.task_group.get_task_group_dict().items() if g},
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Every DAG as a fresh process sees it, with the heavy packages blocked."""
    import json

    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE % (HEAVY, DAGS)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=PROJECT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", DAGS)
def test_a_dag_is_light_documented_owned_and_bounded(dags: dict, name: str) -> None:
    dag = dags[name]
    assert dag["dag_id"] == name
    # Airflow's own start takes some 2 s on a quiet machine; beside it, the file's time does not depend on how busy this one is.
    assert dag["seconds"] < 2 * dag["start"], f"{name} takes {dag['seconds']:.1f} s to load, Airflow {dag['start']:.1f} s"
    assert 20 < len(dag["description"]) < 120, "one line for Airflow's list"
    assert f"## {name}" in dag["doc"]
    assert "**When" in dag["doc"]
    assert "fails**" in dag["doc"]
    assert "vitrine" in dag["tags"]
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1
    for task in dag["tasks"].values():
        assert task["owner"] == "vitrine"
        assert task["retries"] >= 0
        assert task["timeout"], "an execution timeout, or for a person's answer a response timeout"


@pytest.mark.parametrize("name", DAGS)
def test_a_form_can_be_submitted_as_it_opens(dags: dict, name: str) -> None:
    """Airflow's form calls a field required whose type does not allow null; an empty default then disables its Trigger button."""
    defaults, schemas = dags[name]["defaults"], dags[name]["schemas"]
    for param, schema in schemas.items():
        assert schema["title"]
        assert schema["description"], "the form says what each field means"
        if defaults[param] in (None, "", []):
            assert "null" in schema.get("type", "null"), f"{name}: {param} is empty by default and may not be empty"
            assert defaults[param] is None, f"{name}: {param} is empty by default: say so by None"


def test_the_order_of_rebuild_index_is_its_story(dags: dict) -> None:
    tasks = dags["rebuild_index"]["tasks"]
    assert "something_changed" in tasks["validate_snapshot"]["upstream"]
    assert "validate_snapshot" in tasks["plan_reembedding"]["upstream"]
    assert tasks["ask_or_not"]["upstream"] == ["plan_reembedding"]
    assert tasks["agreed"]["upstream"] == ["approve_embedding", "ask_or_not"], "not the inputs: where they are skipped, so is it"
    assert "agreed" in tasks["embed"]["upstream"]
    assert "embed" in tasks["validate_embeddings"]["upstream"]
    assert "validate_embeddings" in tasks["train_template"]["upstream"]
    assert {"build_shard"} <= set(tasks["tune"]["upstream"])
    assert tasks["catch_up"]["upstream"] == ["register_version"]
    assert tasks["publish_candidate"]["upstream"] == ["catch_up"]


def test_the_waits_for_an_engine_end_before_airflow_ends_their_task(dags: dict) -> None:
    assert dags["rebuild_index"]["tasks"]["tune"]["seconds"] > BUILD_LIMIT_S + LOAD_LIMIT_S


def test_changes_are_acknowledged_once_their_version_is_registered_and_before_it_is_published(dags: dict) -> None:
    tasks = dags["refresh_index"]["tasks"]
    assert "embed_changes" in tasks["register_version"]["upstream"]
    assert "register_version" in tasks["acknowledge"]["upstream"]
    assert "acknowledge" in tasks["publish_candidate"]["upstream"]
    assert "publish_candidate" in tasks["ask_for_rebuild"]["upstream"]


def test_a_flip_comes_after_the_shadow_check_and_a_champion_after_its_judge(dags: dict) -> None:
    assert "shadow_check" in dags["promote_index"]["tasks"]["ask_or_not"]["upstream"]
    assert {"ask_or_not", "approve"} <= set(dags["promote_index"]["tasks"]["flip"]["upstream"])
    assert "flip" in dags["promote_index"]["tasks"]["bake"]["upstream"]
    assert "warm_slot" in dags["promote_index"]["tasks"]["shadow_check"]["upstream"]
    assert dags["train_encoder"]["tasks"]["promote_champion"]["upstream"] == ["judge"]


def test_the_graph_of_rebuild_index_has_four_groups(dags: dict) -> None:
    groups = dags["rebuild_index"]["groups"]
    assert set(groups) == {"inputs", "vectors", "shards", "release"}
    inside = [task for tasks in groups.values() for task in tasks]
    assert sorted(inside) == sorted(dags["rebuild_index"]["tasks"]), "every task under its stored name"


@pytest.mark.parametrize("name", DAGS)
def test_a_task_gives_its_step_the_arguments_that_it_has(dags: dict, name: str) -> None:
    for task in dags[name]["tasks"].values():
        if called := re.fullmatch(r"Calls `tasks\.pipelines\.(\w+)\.(\w+)`\.", task["doc"]):
            module, function = called.groups()
            step = getattr(importlib.import_module(f"tasks.pipelines.{module}"), function)
            parameters = inspect.signature(step).parameters
            needed = {n for n, p in parameters.items() if p.default is p.empty} - {"run_key"}
            assert needed <= set(task["arguments"]) <= set(parameters), f"{name}: {called.group()}"
            assert set(get_type_hints(step)) == {*parameters, "return"}, "each has the type it is read as"


@pytest.mark.parametrize(("folder", "most"), [("dags", 100), ("tasks", 300), ("serving", 300), ("plugins", 300)])
def test_a_dag_is_read_on_one_page_and_a_module_holds_one_noun(folder: str, most: int) -> None:
    lines = {str(p): len(p.read_text().splitlines()) for p in (Path(PROJECT) / folder).rglob("*.py")}
    assert lines
    assert {path: count for path, count in lines.items() if count > most} == {}


def test_routes_are_thin() -> None:
    """At most 25 lines with its signature and docstring: what is longer belongs below."""
    methods = ("get", "post", "put", "delete", "patch", "head")
    for path in [*(Path(PROJECT) / "serving").rglob("*.py"), *(Path(PROJECT) / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                called = [d.func for d in node.decorator_list if isinstance(d, ast.Call)]
                if any(isinstance(f, ast.Attribute) and f.attr in methods for f in called):
                    assert (node.end_lineno or 0) - node.lineno < 25, f"{path}: {node.name}"


def test_tasks_never_import_airflow() -> None:
    for path in (Path(PROJECT) / "tasks").rglob("*.py"):
        text = path.read_text()
        assert "import airflow" not in text, path
        assert "from airflow" not in text, path
