"""First step of train_encoder and rebuild_index: fails fast on anything that would stop a later step."""

import logging
from dataclasses import dataclass

from tasks.errors import VitrineError
from tasks.pipelines.collection_steps import check_engine
from tasks.pipelines.common import registry, settings
from tasks.progress import Progress
from tasks.records import Record
from tasks.registry import ENCODER_MODEL
from tasks.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preconditions(Record):
    """What was noticed of a catalogue that can be used; nothing that needs an action."""

    notes: list[str]


def check_preconditions(training: bool) -> Preconditions:
    """Checks the catalogue, with `training` also the training data; without, the engine that is to hold the vectors, and that titles
    can be embedded where they are to be.

    Raises CatalogError listing all problems; VitrineError for an engine or a champion that cannot be used.
    """
    from tasks.validate.preconditions import check_preconditions as check

    if not training:
        check_engine(settings())
        check_text_tower(settings())

    with Progress("look at the catalogue", 0, "pictures") as progress:

        def seen(done: int, total: int) -> None:
            progress.total = total
            progress.set(done)

        notes = check(settings(), seen, training)
    for note in notes:
        log.warning("%s", note)
    return Preconditions(notes)


def check_text_tower(chosen: Settings) -> None:
    """Raises VitrineError where products are to be found by their titles and the champion cannot embed one."""
    from serving.contract.encoder import EncoderFolder
    from serving.versions.text_encoder import text_variant
    from tasks.validate.preconditions import NO_TEXT_TOWER

    models = registry(chosen)
    champion = models.alias(ENCODER_MODEL, "champion") if chosen.text_only else None
    if champion and not text_variant(EncoderFolder(models.encoder_folder(champion.version)).manifest):
        raise VitrineError(f"encoder version {champion.version}, the champion, {NO_TEXT_TOWER}")
