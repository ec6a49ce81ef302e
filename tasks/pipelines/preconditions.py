"""First step of train_encoder and rebuild_index: fails fast on anything that would stop a later step."""

import logging
from dataclasses import dataclass

from tasks.pipelines.collection_steps import check_engine
from tasks.pipelines.common import settings
from tasks.progress import Progress
from tasks.records import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preconditions(Record):
    """What was noticed of a catalogue that can be used; nothing that needs an action."""

    notes: list[str]


def check_preconditions(training: bool) -> Preconditions:
    """Checks the catalogue, with `training` also the training data; without, the engine that is to hold the vectors.

    Raises CatalogError listing all problems; VitrineError for an engine that cannot be used.
    """
    from tasks.validate.preconditions import check_preconditions as check

    if not training:
        check_engine(settings())

    with Progress("look at the catalogue", 0, "pictures") as progress:

        def seen(done: int, total: int) -> None:
            progress.total = total
            progress.set(done)

        notes = check(settings(), seen, training)
    for note in notes:
        log.warning("%s", note)
    return Preconditions(notes)
