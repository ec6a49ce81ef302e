"""The DAGs of this project, by id: those whose runs the board shows, and whose tasks' logs and notes this plugin touches."""

DAGS = (
    "promote_index", "rollback_index", "rebuild_index", "refresh_index", "train_encoder", "watch_quality", "watch_champion",
    "collect_garbage",
)  # fmt: skip
