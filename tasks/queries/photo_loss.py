"""What many synthetic queries hide: a loss of recall on the few photos among them."""

from collections.abc import Sequence

import numpy as np

from tasks.encoder.evaluate.retrieval_metrics import interval
from tasks.queries.view_store import is_view


def loss_on_photos(uris: Sequence[str], difference: np.ndarray, margin: float) -> str:
    """The end of a sentence where the photos of a mixed set show a loss of more than `margin` that is no chance; "" otherwise.

    `difference` (n,) are the paired differences of the queries `uris`. Views are easy and may be ten times as many: over all
    queries a fifth of the photos may be lost within two points.
    """
    photo = np.asarray([not is_view(uri) for uri in uris], bool)
    if photo.all() or not photo.any():
        return ""
    found = interval(difference[photo])
    if found.value >= -margin or found.high >= 0:
        return ""
    return f"; on the {found.n} photos alone {found.text}, more than {margin:.2f} and too clear to be chance"
