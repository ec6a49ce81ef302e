"""First step of train_encoder and rebuild_index: fails fast on anything that would stop a later step."""

import logging
from typing import Any

from tasks.pipelines.common import settings
from tasks.progress import Progress

log = logging.getLogger(__name__)


def check_preconditions(training: bool) -> dict[str, Any]:
    """Checks the catalogue, with `training` also the training data. Raises CatalogError listing all problems."""
    from tasks.validate.preconditions import check_preconditions as check

    with Progress("look at the catalogue", 0, "pictures") as progress:

        def seen(done: int, total: int) -> None:
            progress.total = total
            progress.set(done)

        notes = check(settings(), seen, training)
    for note in notes:
        log.warning("%s", note)
    return {"notes": notes}
