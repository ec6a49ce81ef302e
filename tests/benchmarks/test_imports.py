"""What the programs that no test runs import, also inside their functions, is there."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("tests", "tasks", "serving", "dags", "plugins")
OF_AN_OLD_TREE = ("tests/compatibility/make_fixture.py", "tests/e2e/pipeline_8710f00.py")
"""They run in the tree of an earlier version."""


@cache
def names(module: str) -> frozenset[str]:
    """What can be imported from a module: every name that it binds anywhere, and its own modules where it is a package."""
    path = ROOT / module.replace(".", "/")
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    found = {p.stem for p in path.iterdir()} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text())) if file.exists() else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return frozenset(found)


def test_every_name_that_is_imported_is_there() -> None:
    missing = []
    for file in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        place = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                not isinstance(node, ast.ImportFrom)
                or (node.module or "").partition(".")[0] not in ROOMS
                or place in OF_AN_OLD_TREE
            ):
                continue
            missing += [
                f"{place}:{node.lineno} {node.module}.{a.name}" for a in node.names if a.name not in names(node.module or "")
            ]
    assert missing == []
