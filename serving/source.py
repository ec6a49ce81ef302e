"""Where versions come from: the MLflow registry, or a folder that holds an exported release. One small protocol."""

import json
import shutil
from pathlib import Path
from typing import Protocol

from serving.contract.files import ContractError, FileRef, sha256_file, verify
from serving.contract.manifest import IndexManifest, read_manifest

MODEL = "product-index"


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
    """The registry at `uri`, through mlflow-skinny; files are kept in `cache` by their sha256 and fetched once."""

    def __init__(self, uri: str, cache: Path) -> None:
        from mlflow import MlflowClient  # type: ignore[attr-defined, unused-ignore]

        self.uri, self.cache = uri, cache
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

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
        return read_manifest(self._download(run, "index/manifest.json", self.cache / "manifests" / run), IndexManifest)

    def encoder(self, manifest: IndexManifest) -> Path:
        wanted = manifest.encoder
        folder = self.cache / "encoders" / wanted.manifest.sha256
        if not (folder / "encoder.json").is_file():
            incoming = self.cache / "incoming" / wanted.run_id
            found = self._download(wanted.run_id, "encoder", incoming)
            verify(found / "encoder.json", wanted.manifest)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            found.replace(folder)
        return folder

    def fetch(self, ref: FileRef) -> Path:
        path = self.cache / "files" / ref.sha256
        if path.is_file() and sha256_file(path) == ref.sha256:
            return path
        found = self._download(ref.run_id, ref.path, self.cache / "incoming" / ref.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.replace(path)
        return path

    def _download(self, run: str, artifact: str, into: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        into.mkdir(parents=True, exist_ok=True)
        try:
            return Path(download_artifacts(run_id=run, artifact_path=artifact, dst_path=str(into), tracking_uri=self.uri))
        except Exception as error:  # MLflow raises many unrelated classes when an artifact is not there
            raise ContractError(f"{artifact} of run {run} cannot be fetched: {str(error).splitlines()[0]}") from None
