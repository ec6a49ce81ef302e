"""MLflow's registered models: versions, aliases and tags."""

from dataclasses import dataclass
from typing import Any

from tasks.errors import InputMissing, VitrineError
from tasks.registry.runs import TRAINING, Origin, Runs
from tasks.registry.version_page import DESCRIPTION_LENGTH, shortened

ENCODER_MODEL = "product-encoder"
INDEX_MODEL = "product-index"
INDEX_EXPERIMENT = "indexes"
"""The MLflow experiment of all index versions, one run per version."""
MADE_BY = "\n\nMade by "
ABOUT = {
    ENCODER_MODEL: (
        "Encoder versions: each turns pictures (and words) into unit vectors of one space. `champion` is what the catalogue is "
        "embedded with; moving it to another version starts the DAG `rebuild_index`, which embeds every product again. "
        "`challenger` is the version that was judged last."
    ),
    INDEX_MODEL: (
        "Index versions: each is a release, a manifest of verified segments together with the encoder version it needs. `live` is "
        "what shoppers get and names the same version as `blue` or `green`, the two slots of every replica; `candidate` passed its "
        "gates and waits for `promote_index`; `previous` is where a rollback goes. Move these with `vitrine release` or the board "
        "in Airflow, not here."
    ),
}


@dataclass(frozen=True)
class Version:
    """One registered model version."""

    model: str
    version: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    description: str
    created_ms: int

    @property
    def summary(self) -> str:
        """The version in one sentence: the first paragraph of its description."""
        return self.description.partition("\n\n")[0]


class Versions(Runs):
    """The registered models of a tracking server."""

    def register(self, model: str, run_id: str, path: str, tags: dict[str, str], description: str) -> Version:
        """Registers the version of `model` from a run's artifacts. Idempotent."""
        self._create_model(model)
        for version in self.versions(model):
            if version.run_id == run_id:
                return version
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{path}"
        links = [*([self.origin] if self.origin else []), Origin("MLflow run", self.run_url(run_id))]
        closing = f"{MADE_BY}{' · '.join(link.markdown for link in links)}"
        text = shortened(description, DESCRIPTION_LENGTH - len(closing)) + closing
        made = self.client.create_model_version(model, source, run_id, tags=self._origin_tags() | tags, description=text)
        return self.version(model, str(made.version))

    def describe(self, found: Version, page: str) -> None:
        """Replaces a version's description, which MLflow shows as Markdown, but for its last paragraph, who made it."""
        maker = found.description.rpartition(MADE_BY)[2] if MADE_BY in found.description else ""
        closing = f"{MADE_BY}{maker}" if maker else ""
        text = shortened(page, DESCRIPTION_LENGTH - len(closing)) + closing
        self.client.update_model_version(found.model, found.version, description=text)

    def _create_model(self, model: str) -> None:
        """Creates a registered model unless it exists."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(model, {"made_by": "vitrine"}, ABOUT[model])
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def version_url(self, model: str, version: str) -> str:
        """URL of a model version in MLflow's UI."""
        return f"{self.page}/#/models/{model}/versions/{version}{TRAINING}"

    def versions(self, model: str, limit: int = 0) -> list[Version]:
        """All versions (or the newest `limit`), newest first; [] when the model does not exist. Two requests per 1000 versions."""
        held: dict[str, list[str]] = {}
        for alias, version in self.aliases(model).items():
            held.setdefault(version, []).append(alias)
        made: list[Version] = []
        page: str | None = ""
        while page is not None and (not limit or len(made) < limit):
            found = self.client.search_model_versions(
                f"name = '{model}'",
                max_results=min(limit or 1000, 1000),
                order_by=["version_number DESC"],
                page_token=page or None,
            )
            made += [_version(model, v, tuple(sorted(held.get(str(v.version), [])))) for v in found]
            page = found.token or None
        return made[:limit] if limit else made

    def aliases(self, model: str) -> dict[str, str]:
        """All aliases of a model with their versions; {} when it does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: str(version) for alias, version in found.aliases.items()}

    def version(self, model: str, version: str) -> Version:
        """One version by number. Raises VitrineError when it does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version(model, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise VitrineError(f"{model} has no version {version!r}; see: vitrine release list") from None
            raise
        return _version(model, found, tuple(sorted(found.aliases)))

    def resolve(self, model: str, name: str) -> Version:
        """A version by number or alias. Raises VitrineError when it does not exist."""
        found = None if name.isdigit() else self.alias(model, name)
        return found or self.version(model, name)

    def alias(self, model: str, alias: str) -> Version | None:
        """The version of an alias, or None."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version_by_alias(model, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return self.version(model, str(found.version))

    def require_alias(self, model: str, alias: str) -> Version:
        """The version of an alias. Raises InputMissing naming the DAG that sets it."""
        found = self.alias(model, alias)
        if found is None:
            maker = "train_encoder" if model == ENCODER_MODEL else "rebuild_index"
            raise InputMissing(f"{model} has no version called {alias!r}; run the DAG {maker} first")
        return found

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.client.set_registered_model_alias(model, alias, version)

    def tag_version(self, model: str, version: str, tag: str, value: str) -> None:
        self.client.set_model_version_tag(model, version, tag, value)

    def delete_version_tag(self, model: str, version: str, tag: str) -> None:
        """Deletes a version's tag. Idempotent."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_model_version_tag(model, version, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def model_tags(self, model: str) -> dict[str, str]:
        """The tags of a registered model; {} when it does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_registered_model(model).tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    def set_model_tag(self, model: str, tag: str, value: str) -> None:
        """Sets a tag of a registered model, creating the model if needed: a lease may precede the first version."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_registered_model_tag(model, tag, value)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._create_model(model)
            self.client.set_registered_model_tag(model, tag, value)

    def delete_model_tag(self, model: str, tag: str) -> None:
        """Deletes a tag of a registered model. Idempotent."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_registered_model_tag(model, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def delete_version(self, model: str, version: str) -> None:
        """Deletes a version from the registry; its run with metrics stays. Idempotent."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_model_version(model, version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise


def _version(model: str, found: Any, aliases: tuple[str, ...]) -> Version:
    """Converts MLflow's model version; search results lack the aliases."""
    return Version(
        model, str(found.version), str(found.run_id), dict(found.tags), aliases, found.description or "",
        int(found.creation_timestamp or 0),
    )  # fmt: skip
