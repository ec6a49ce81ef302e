"""Where versions come from: the MLflow registry, or a folder that holds an exported release. One small protocol."""

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from serving.contract.files import ContractError, FileRef, sha256_file, verify
from serving.contract.manifest import EncoderManifest, IndexManifest, read_manifest

MODEL = "product-index"
RECENT = 3
"""Versions whose files are never removed from the cache: both slots and one on its way."""


class VersionSource(Protocol):
    """Aliases, manifests and files of index versions."""

    def resolve(self, alias: str) -> str:
        """The version that `blue`, `green` or `live` names; "" when it names none."""
        ...

    def manifest(self, version: str) -> IndexManifest: ...

    def encoder(self, manifest: IndexManifest) -> Path:
        """The folder of the encoder version that the index needs."""
        ...

    def fetch(self, ref: FileRef) -> Path:
        """A local path of a segment file; it is verified by whoever opens it."""
        ...


class FolderSource:
    """An exported release: `aliases.json` {alias: version}, `<version>/manifest.json`, `encoders/<sha>/…`, `files/<sha256>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, alias: str) -> str:
        path = self.folder / "aliases.json"
        return str(json.loads(path.read_text()).get(alias, "")) if path.is_file() else ""

    def manifest(self, version: str) -> IndexManifest:
        return read_manifest(self.folder / version / "manifest.json", IndexManifest)

    def encoder(self, manifest: IndexManifest) -> Path:
        return self.folder / "encoders" / manifest.encoder.manifest.sha256

    def fetch(self, ref: FileRef) -> Path:
        return self.folder / "files" / ref.sha256


class MlflowSource:
    """The registry at `uri`, through mlflow-skinny; files are kept in `cache` by their sha256 and fetched once.

    The cache takes at most `limit_bytes`: the least recently used files go first, never those of the last few versions asked for.
    """

    def __init__(self, uri: str, cache: Path, limit_bytes: int = 20 * 2**30) -> None:
        from mlflow import MlflowClient  # type: ignore[attr-defined, unused-ignore]

        self.uri, self.cache, self.limit_bytes = uri, cache, limit_bytes
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.recent: deque[set[str]] = deque(maxlen=RECENT)

    def resolve(self, alias: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_model_version_by_alias(MODEL, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return ""
            raise

    def manifest(self, version: str) -> IndexManifest:
        run = str(self.client.get_model_version(MODEL, version).run_id)
        with self._incoming() as folder:
            manifest = read_manifest(self._download(run, "index/manifest.json", folder), IndexManifest)
        self.recent.append({f.sha256 for f in manifest.files()})
        return manifest

    def encoder(self, manifest: IndexManifest) -> Path:
        wanted = manifest.encoder
        folder = self.cache / "encoders" / wanted.manifest.sha256
        if folder.is_dir() and _whole(folder, wanted.manifest):
            return folder
        with self._incoming() as incoming:
            found = self._download(wanted.run_id, "encoder", incoming)
            verify(found / "encoder.json", wanted.manifest)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            found.replace(folder)
        return folder

    def fetch(self, ref: FileRef) -> Path:
        path = self.cache / "files" / ref.sha256
        if path.is_file() and path.stat().st_size == ref.bytes and sha256_file(path) == ref.sha256:
            os.utime(path)
            return path
        with self._incoming() as incoming:
            found = verify(self._download(ref.run_id, ref.path, incoming), ref)
            path.parent.mkdir(parents=True, exist_ok=True)
            found.replace(path)
        self._make_room()
        return path

    def _make_room(self) -> None:
        """Removes the least recently used files over the limit. A file that is mapped stays readable until it is closed."""
        files = sorted((self.cache / "files").iterdir(), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        for path in files:
            if total <= self.limit_bytes:
                return
            if not any(path.name in used for used in self.recent):
                total -= path.stat().st_size
                path.unlink(missing_ok=True)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A folder for what is on its way, on the cache's own disk; what a killed process left in one is never looked at."""
        (self.cache / "incoming").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache / "incoming") as folder:
            yield Path(folder)

    def _download(self, run: str, artifact: str, into: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        try:
            return Path(download_artifacts(run_id=run, artifact_path=artifact, dst_path=str(into), tracking_uri=self.uri))
        except Exception as error:  # MLflow raises many unrelated classes when an artifact is not there
            raise ContractError(f"{artifact} of run {run} cannot be fetched: {str(error).splitlines()[0]}") from None


def _whole(folder: Path, manifest: FileRef) -> bool:
    """Whether a kept encoder version has every file as its manifest says."""
    try:
        verify(folder / "encoder.json", manifest)
        found = read_manifest(folder / "encoder.json", EncoderManifest)
        files = [v.file for variants in found.towers.values() for v in variants.values()]
        for ref in [*files, found.golden, *([found.tokenizer] if found.tokenizer else [])]:
            verify(folder / ref.path, ref)
    except ContractError:
        return False
    return True
