"""What an index version's MLflow run says of its embedding: written by rebuild_index, read by plans, the board and watch_quality."""

PLAN, ENCODER, HOW = "embed.plan", "embed.encoder", "embed.how"
"""Tags: the plan as JSON, and which encoder was embedded with, on what."""
DONE, ELAPSED_S, AT_S = "embed.progress.done", "embed.progress.elapsed_s", "embed.progress.at_s"
BEFORE = "embed.progress.before"
"""Metrics while it embeds: pictures done, seconds since this attempt began to embed, when that was read (epoch seconds), and how many
of those done are of earlier attempts."""
IMAGES, SECONDS, CORES = "embed.images", "embed.seconds", "embed.cores"
"""Metrics of the attempt that ended: pictures embedded, in how long, on how many cores."""
