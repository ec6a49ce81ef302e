"""Sources of versions behind one protocol: the MLflow registry, or the folder of an exported release."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Protocol

from serving.contract.addresses import error_line
from serving.contract.binding import MANIFEST_SHA256, BindingPolicy, check_verdict
from serving.contract.files import ContractError, FileRef, sha256_file, verify
from serving.contract.manifest import SLOTS, EncoderManifest, IndexManifest, parse_manifest, read_manifest, read_manifest_bytes
from serving.versions.disk_cache import DiskCache, make_read_only, touch
from serving.versions.last_known import LastKnown

log = logging.getLogger(__name__)

MODEL = "product-index"
ALIASES = "aliases.json"
MANIFEST = "index/manifest.json"
MLFLOW_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""MLflow's defaults are 120 s and 7 retries: an outage would be noticed minutes late."""


def limit_mlflow_timeouts() -> None:
    """Sets MLflow's HTTP timeouts for this process, where the environment does not."""
    for name, value in MLFLOW_TIMEOUTS.items():
        os.environ.setdefault(name, value)


class VersionSource(Protocol):
    """Resolves aliases and fetches manifests and files of index versions."""

    def resolve(self, alias: str) -> str:
        """The version of the alias `blue`, `green` or `live`; "" when there is none."""
        ...

    def manifest(self, version: str) -> IndexManifest:
        """The manifest of a version, checked for what binds it before it is parsed. Raises ContractError."""
        ...

    def encoder(self, manifest: IndexManifest) -> Path:
        """The folder of the encoder version that the index needs."""
        ...

    def fetch(self, ref: FileRef) -> Path:
        """The local path of a segment file, which the caller verifies."""
        ...

    def last_known(self) -> dict[str, str]:
        """The aliases as they were last read, for a start while they cannot be; {} where that is not known."""
        ...


class FolderSource:
    """An exported release: `aliases.json` {alias: version}, `<version>/manifest.json`, `encoders/<sha>/…`, `files/<sha256>`.

    No registry binds its manifests: what can be asked for is that they are signed.
    """

    def __init__(self, folder: Path, trust: BindingPolicy | None = None) -> None:
        self.folder, self.trust = folder, trust or BindingPolicy()

    def resolve(self, alias: str) -> str:
        path = self.folder / ALIASES
        return str(json.loads(path.read_text()).get(alias, "")) if path.is_file() else ""

    def manifest(self, version: str) -> IndexManifest:
        path = self.folder / version / "manifest.json"
        data = read_manifest_bytes(path)
        self.trust.check_signature(data, "", f"index version {version}", "vitrine release bind, and export it again")
        return parse_manifest(data, IndexManifest, str(path))

    def encoder(self, manifest: IndexManifest) -> Path:
        return self.folder / "encoders" / manifest.encoder.manifest.sha256

    def fetch(self, ref: FileRef) -> Path:
        return self.folder / "files" / ref.sha256

    def last_known(self) -> dict[str, str]:
        return {}


def exported_release(folder: Path, trust: BindingPolicy | None = None) -> FolderSource:
    """Opens an exported release. Raises ValueError where the folder holds none, or where tags are asked for, which it cannot have."""
    if trust is not None and trust.require_bound and trust.key is None:
        raise ValueError(
            "VITRINE_REQUIRE_BOUND and VITRINE_RELEASE are set: no registry binds an exported release, only its signature does; set "
            "VITRINE_VERIFY_KEY as well"
        )
    if not (folder / ALIASES).is_file():
        what = f"there is no {ALIASES} in it" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"VITRINE_RELEASE={str(folder)!r} holds no release: {what}; `vitrine release export` writes one")
    return FolderSource(folder, trust)


class MlflowSource:
    """The MLflow registry at `uri`, through mlflow-skinny; files and encoders are cached on disk in `cache` by sha256.

    The cache holds at most `limit_bytes`, evicting the least recently used, never those of versions that the aliases name. Manifests
    are believed as far as `trust` says. While MLflow does not answer, a version's manifest and tags are those last read of it.
    """

    def __init__(self, uri: str, cache: Path, limit_bytes: int = 20 * 2**30, trust: BindingPolicy | None = None) -> None:
        from mlflow import MlflowClient  # type: ignore[attr-defined, unused-ignore]

        self.uri, self.disk_cache, self.trust = uri, DiskCache(cache, limit_bytes), trust or BindingPolicy()
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.last = LastKnown(cache / "last_known", uri)
        self.aliases = self.last.aliases()
        self.files_by_version: dict[str, set[str]] = {}

    def resolve(self, alias: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            version = str(self.client.get_model_version_by_alias(MODEL, alias).version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            version = ""
        if self.aliases.get(alias) != version:
            self.aliases[alias] = version
            if len(self.aliases) > len(SLOTS):  # the slots and `live`: a start reads one after the other
                self.last.keep_aliases(self.aliases)
        return version

    def last_known(self) -> dict[str, str]:
        return self.last.aliases()

    def manifest(self, version: str) -> IndexManifest:
        what = f"index version {version}"
        data, tags = self._registered(version)
        check_verdict(tags, what)
        if not self.trust.check(data, tags, what, f"vitrine release bind {version}"):
            log.warning("%s is of before versions were bound to their manifests (it has no tag %s)", what, MANIFEST_SHA256)
        manifest = parse_manifest(data, IndexManifest, f"{MANIFEST} of {what}")
        named = set(self.aliases.values())
        self.files_by_version = {v: parts for v, parts in self.files_by_version.items() if v in named}
        self.files_by_version[version] = {manifest.encoder.manifest.sha256, *(f.sha256 for f in manifest.files())}
        return manifest

    def _registered(self, version: str) -> tuple[bytes, dict[str, str]]:
        """The manifest of a version and its tags, each as MLflow has it now, or as it was last read where that cannot be read.

        A version that MLflow does not have (any more) is an error, and tags that it says now count, whatever they were.
        """
        from mlflow.exceptions import MlflowException

        kept = self.last.version(version)
        try:
            registered = self.client.get_model_version(MODEL, version)
        except MlflowException as error:
            if kept is None or error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise
            _log_last_known(version, error)
            return kept
        data, tags = b"" if kept is None else kept[0], dict(registered.tags)
        try:
            with self.disk_cache.staging() as folder:
                data = read_manifest_bytes(self._download(str(registered.run_id), MANIFEST, folder))
        except ContractError as error:
            if kept is None:
                raise
            _log_last_known(version, error)
        self.last.keep_version(version, data, tags)
        return data, tags

    def encoder(self, manifest: IndexManifest) -> Path:
        wanted = manifest.encoder
        folder = self.disk_cache.encoder(wanted.manifest.sha256)
        if folder.is_dir() and _whole(folder, wanted.manifest):
            return touch(folder)
        with self.disk_cache.staging() as staging:
            found = self._download(wanted.run_id, "encoder", staging)
            verify(found / "encoder.json", wanted.manifest)
            make_read_only(found)
            shutil.rmtree(folder, ignore_errors=True)
            found.replace(folder)
        self._evict()
        return folder

    def fetch(self, ref: FileRef) -> Path:
        path = self.disk_cache.file(ref.sha256)
        if path.is_file() and path.stat().st_size == ref.bytes and sha256_file(path) == ref.sha256:
            return touch(path)
        with self.disk_cache.staging(ref.bytes) as staging:
            make_read_only(verify(self._download(ref.run_id, ref.path, staging), ref)).replace(path)
        self._evict()
        return path

    def _evict(self) -> None:
        """Evicts from the disk cache, except files of versions that the aliases name and of the last manifest read."""
        self.disk_cache.evict(set().union(*self.files_by_version.values()))

    def _download(self, run: str, artifact: str, into: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        try:
            return Path(download_artifacts(run_id=run, artifact_path=artifact, dst_path=str(into), tracking_uri=self.uri))
        except Exception as error:  # MLflow raises many unrelated classes when an artifact is not there
            raise ContractError(f"{artifact} of run {run} cannot be fetched: {error_line(error)}") from None


def _log_last_known(version: str, error: Exception) -> None:
    log.warning("index version %s is loaded by what was last read of it: %s", version, error_line(error))


def _whole(folder: Path, manifest: FileRef) -> bool:
    """Whether a cached encoder version has every file of its manifest, unchanged."""
    try:
        verify(folder / "encoder.json", manifest)
        found = read_manifest(folder / "encoder.json", EncoderManifest)
        files = [f for variants in found.towers.values() for v in variants.values() for f in v.graph_files()]
        for ref in [*files, found.golden, *([found.tokenizer] if found.tokenizer else [])]:
            verify(folder / ref.path, ref)
    except ContractError:
        return False
    return True
