"""Artifacts in MLflow's store: encoder folders, manifests and segment files, fetched once and verified."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, FileRef, describe, verify
from serving.contract.manifest import EncoderManifest, EncoderRef, IndexManifest, parse_manifest, read_manifest_bytes
from tasks.registry.versions import ENCODER_MODEL, INDEX_MODEL, Version, Versions

ENCODER_PATH = "encoder"
INDEX_PATH = "index"
FILES, ENCODERS, MANIFESTS = CACHE_FOLDERS = "files", "encoders", "manifests"
"""Folders below `Registry.cache`: files of index versions by sha256, encoder folders and manifests by run."""
Opened = TypeVar("Opened")


class Registry(Versions):
    """A tracking server at `uri`; `cache` holds fetched encoder versions and manifests by version.

    `page` is where a browser reaches the same server (default: `uri`). `origin`, the DAG run that works here, is written into
    every run and version that is made. Manifests are believed as far as `trust` says. `endpoint` is that of the engine that holds the
    base vectors of versions whose manifests name one.
    """

    def fetch(self, run_id: str, path: str, into: Path) -> Path:
        """Downloads an artifact (file or folder) of a run below `into`. Raises ContractError when it does not exist."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        into.mkdir(parents=True, exist_ok=True)
        try:
            return Path(download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(into), tracking_uri=self.uri))
        except MlflowException as error:
            # MLflow says "does not exist" of a store that is away as well: that passes, and is no ContractError.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or self._is_there(run_id, path):
                raise
            whose = ", ".join(f"{v.name} version {v.version}" for v in self.client.search_model_versions(f"run_id = '{run_id}'"))
            raise ContractError(
                f"{path} of run {run_id}{f' ({whose})' if whose else ''} is not in MLflow's store; take it from a copy, or make a "
                "new version"
            ) from None

    def _is_there(self, run_id: str, path: str) -> bool:
        """Whether the store lists an artifact. Raises MLflow's error when the store is unreachable."""
        from mlflow.exceptions import MlflowException

        try:
            parent = str(PurePosixPath(path).parent)
            return any(info.path == path for info in self.client.list_artifacts(run_id, parent if parent != "." else None))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run
                return False
            raise

    def file(self, ref: FileRef) -> Path:
        """A file of an index version, cached by sha256 and verified once per object and modification.

        Raises ContractError when the registry's own is damaged or gone.
        """
        path = self.cache / FILES / ref.sha256
        if path not in self.verified or self.verified[path] != _written(path):
            self._cached(path, ref.run_id, ref.path, lambda found: verify(found, ref))
            self.verified[path] = _written(path)
        return path

    def artifacts(self, run_id: str, path: str) -> list[tuple[str, int]]:
        """Files of a run below `path` with their sizes in bytes; [] when there are none."""
        found: list[tuple[str, int]] = []
        for info in self.client.list_artifacts(run_id, path):
            found += self.artifacts(run_id, info.path) if info.is_dir else [(info.path, int(info.file_size or 0))]
        return found

    def delete_artifact(self, run_id: str, path: str) -> None:
        """Deletes one file of a run."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self.client.get_run(run_id).info.artifact_uri
        get_artifact_repository(uri, tracking_uri=self.uri, registry_uri=self.uri).delete_artifacts(path)

    def _cached(self, path: Path, run_id: str, artifact: str, opened: Callable[[Path], Opened]) -> Opened:
        """`opened` applied to the cached copy of an artifact at `path`, or to a fresh one when ContractError says it is damaged.

        A copy is kept only once `opened` took it, so that a damaged download does not stay; it appears whole or not at all, also
        when two processes fetch it at once.
        """
        try:
            return opened(path)
        except ContractError:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=path.parent) as folder:
            found = self.fetch(run_id, artifact, Path(folder))
            result = opened(found)
            try:
                found.replace(path)
            except OSError:
                if not path.exists():
                    raise
        return result

    def encoder_folder(self, version: str) -> Path:
        """The folder of an encoder version, fetched once and verified every time."""
        found = self.version(ENCODER_MODEL, version)
        folder = self.cache / ENCODERS / found.run_id
        self._cached(folder, found.run_id, ENCODER_PATH, lambda kept: self._verify_encoder(kept, found))
        return folder

    def _verify_encoder(self, folder: Path, found: Version) -> None:
        """Raises ContractError unless a folder is the encoder version that was registered, whole."""
        data = read_manifest_bytes(folder / "encoder.json")
        self.trust.check(data, found.tags, f"encoder version {found.version}", "vitrine release bind")
        for variants in parse_manifest(data, EncoderManifest, str(folder / "encoder.json")).towers.values():
            for variant in variants.values():
                for file in variant.graph_files():
                    verify(folder / file.path, file)

    def encoder_ref(self, version: str) -> EncoderRef:
        """The reference to an encoder version for an index manifest."""
        found = self.version(ENCODER_MODEL, version)
        folder = self.encoder_folder(version)
        manifest = EncoderFolder(folder).manifest
        return EncoderRef(
            name=manifest.name,
            version=version,
            run_id=found.run_id,
            manifest=describe(folder / "encoder.json", f"{ENCODER_PATH}/encoder.json", found.run_id),
            document=manifest.document,
            document_fingerprint=manifest.variant(manifest.document).fingerprint,
            query=manifest.query,
            query_fingerprint=manifest.variant(manifest.query).fingerprint,
            dim=manifest.dim,
        )

    def index_manifest(self, version: str) -> IndexManifest:
        """The manifest of an index version."""
        return self.manifest_of(self.version(INDEX_MODEL, version))

    def manifest_of(self, found: Version) -> IndexManifest:
        """The manifest of a version record; cached, as versions are immutable. Raises ContractError where it is another by now."""
        return self._manifest(found)[1]

    def manifest_data(self, found: Version) -> bytes:
        """The manifest's bytes as they were registered. Raises ContractError where they are others by now, or no manifest."""
        return self._manifest(found)[0]

    def _manifest(self, found: Version) -> tuple[bytes, IndexManifest]:
        def read(path: Path) -> tuple[bytes, IndexManifest]:
            data = read_manifest_bytes(path)
            self.trust.check(data, found.tags, f"index version {found.version}", f"vitrine release bind {found.version}")
            return data, parse_manifest(data, IndexManifest, str(path))

        path = self.cache / MANIFESTS / found.run_id / "manifest.json"
        return self._cached(path, found.run_id, f"{INDEX_PATH}/manifest.json", read)


def unreachable(error: BaseException) -> bool:
    """Whether an MLflow error means that its server could not be reached."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    return isinstance(error, MlflowException) and isinstance(error.__cause__ or error.__context__, RequestException)


def _written(path: Path) -> tuple[int, int, int] | None:
    """A token that changes when a file is written or replaced; None when it does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
