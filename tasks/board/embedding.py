"""The newest embedding plan for the board, and how far the run is that it was made for."""

import json
from typing import Any

from tasks.embed.run_record import AT_S, BEFORE, DONE, ELAPSED_S, IMAGES, PLAN
from tasks.registry import INDEX_EXPERIMENT, Registry


def embedding_entry(registry: Registry) -> dict[str, Any]:
    """The plan's figures with `state` (planned, asking, embedding, done), progress and seconds left (0: not known); {} without a plan.

    `asking` says that the plan needs a person, who may have answered by now. `read_s` (epoch seconds) is when progress was told.
    """
    found = registry.newest_measured(INDEX_EXPERIMENT, tags={PLAN: ""})
    if found is None:
        return {}
    plan = json.loads(found.tags[PLAN])
    done, elapsed = found.metrics.get(DONE, 0.0), found.metrics.get(ELAPSED_S, 0.0)
    if done >= plan["to_embed"] or IMAGES in found.metrics:  # without a figure of images where none could be used
        state = "done"
    elif DONE in found.metrics:
        state = "embedding"
    else:
        state = "asking" if plan["needs_approval"] else "planned"
    rate = (done - found.metrics.get(BEFORE, 0.0)) / elapsed if elapsed else 0.0
    left = max(plan["to_embed"] - done, 0)
    return plan | {
        "run_key": found.key, "state": state, "done": int(done), "images_per_s": rate, "left_s": left / rate if rate else 0.0,
        "read_s": found.metrics.get(AT_S, 0.0), "url": registry.run_url(found.run_id),
    }  # fmt: skip
