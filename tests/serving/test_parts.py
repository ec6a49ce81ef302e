"""Cache, settings, pictures, and the rule that serving is thin."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.api.product_pictures import picture_path
from serving.search.caches import LocalCache
from serving.settings import ServingSettings

HEAVY = (
    "torch",
    "torchvision",
    "open_clip",
    "pyspark",
    "airflow",
    "great_expectations",
    "onnx",
    "boto3",
    "tasks",
    "dags",
    "plugins",
)


def test_the_least_recently_used_goes_first_and_nothing_outlives_its_time() -> None:
    now = [0.0]
    cache = LocalCache(2, 10.0, lambda: now[0])
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("b"), cache.get("a"), cache.get("c")) == (None, 1, 3)
    now[0] = 10.5
    assert cache.get("a") is None
    assert (cache.hits, cache.misses) == (3, 2)
    assert len(cache.values) == 0


def test_settings_come_from_the_environment() -> None:
    found = ServingSettings.load({"VITRINE_PORT": "9", "VITRINE_CACHE": "somewhere", "VITRINE_POLL_S": "0.5", "PORT": "1"})
    assert (found.port, found.cache, found.poll_s) == (9, Path("somewhere"), 0.5)
    with pytest.raises(ValueError, match="VITRINE_PORT='many' is not a whole number"):
        ServingSettings.load({"VITRINE_PORT": "many"})


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("images/a.jpg", True),
        ("images/../images/a.jpg", True),
        ("../secret.jpg", False),
        ("images/link.jpg", False),
        ("/etc/hostname", False),
        ("file:///etc/hostname", False),
        ("https://example.com/a.jpg", False),
        ("s3://bucket/a.jpg", False),
        ("images/none.jpg", False),
        ("images/notes.txt", False),
        ("images", False),
    ],
)
def test_only_pictures_below_the_root_are_shown(tmp_path: Path, uri: str, shown: bool) -> None:
    root = tmp_path / "catalog"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.jpg").write_bytes(b"x")
    (root / "images" / "b 1.jpg").write_bytes(b"x")
    (root / "images" / "notes.txt").write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    assert (picture_path(uri, str(root)) is not None) == shown
    assert picture_path((root / "images" / "b 1.jpg").as_uri(), str(root)) == root / "images" / "b 1.jpg"
    assert picture_path(uri, "") is None
    assert picture_path(uri, "s3://bucket") is None


def test_serving_starts_without_anything_heavy() -> None:
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
from serving.app import create_app
from serving.main import main
from pathlib import Path
from serving.settings import ServingSettings
from serving.versions.version_source import FolderSource
create_app(ServingSettings(), FolderSource(Path("somewhere")))
print(sorted(m for m in sys.modules if m.split(".")[0] in ("mlflow", "pandas", "sqlalchemy", "matplotlib", "sklearn", "redis")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
