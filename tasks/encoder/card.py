"""The model card: what an encoder version is, made of its manifest and its evaluation; never written by hand."""

from serving.contract.manifest import EncoderManifest, Gate
from tasks.encoder.evaluate import EncoderReport


def card(manifest: EncoderManifest, report: EncoderReport, gates: tuple[Gate, ...]) -> str:
    """The card as Markdown."""
    recipe, metrics = manifest.recipe, manifest.metrics
    lines = [
        f"# Encoder {manifest.name}",
        "",
        f"Maps pictures of {manifest.preprocess.size} x {manifest.preprocess.size} pixels ({manifest.preprocess.fit}) and texts to "
        f"unit vectors of {manifest.dim} numbers. Documents by `{manifest.document}`, queries by `{manifest.query}`.",
        "",
        "## Data",
        "",
        f"- Catalogue content `{report.content_sha256[:16]}`: {report.products} products; judged on {len(report.photos)} "
        f"held-out photos (split `{report.split}`), none of which was trained on.",
        "- Splits are by photo: every product was seen in training. Recall on products never seen is not measured here.",
        "",
        "## Recipe",
        "",
        *(f"- {tower}: {_tower(recipe, metrics, tower)}" for tower in ("teacher", "student")),
        f"- Distillation: alpha {recipe.get('alpha')}, KL temperature {recipe.get('kl_temperature')}, "
        f"cosine weight {recipe.get('cosine_weight')}; seed {recipe.get('seed')}, {recipe.get('precision')}.",
        "",
        "## Recall",
        "",
        "| queries | documents | Recall@1 | Recall@5 | Recall@10 | MRR |",
        "|---|---|---|---|---|---|",
        *(
            f"| {p.query} | {p.document} | "
            + " | ".join(f"{r.value:.3f} ({r.low:.3f}-{r.high:.3f})" for r in p.recall.values())
            + f" | {p.mrr:.3f} |"
            for p in report.pairs
        ),
        "",
        "## Gates",
        "",
        *(f"- {'passed' if g.passed else '**failed**'} {g.name}: {g.reason}" for g in gates),
        "",
        "## Files",
        "",
        *(
            f"- `{v.file.path}`: {v.file.bytes / 1e6:.2f} MB, fingerprint `{v.fingerprint[:16]}`"
            for variants in manifest.towers.values()
            for v in variants.values()
        ),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in _limits(manifest, report)),
        "",
    ]
    return "\n".join(lines)


def _tower(recipe: dict, metrics: dict[str, float], tower: str) -> str:
    network = recipe.get(tower, {})
    start = network.get("pretrained") or "random weights"
    name = network.get("open_clip") or network.get("timm")
    cost = {k: metrics.get(f"{tower}.training.{k}", 0.0) for k in ("steps", "seconds", "peak_memory_bytes")}
    return (
        f"{name} from {start}, {metrics.get(f'{tower}.parameters', 0) / 1e6:.2f}M parameters in the image tower; "
        f"{cost['steps']:.0f} steps in {cost['seconds']:.0f} s, peak memory {cost['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def _limits(manifest: EncoderManifest, report: EncoderReport) -> list[str]:
    limits = [f"Figures hold for catalogues like this one; {len(report.photos)} photos give the intervals above."]
    if "int8" not in manifest.towers.get("student", {}):
        limits.append("Ships without int8: it lost more recall than the gate allows.")
    pair = report.pair(report.query)
    if pair is not None and pair.slices:
        name, worst = min(pair.slices.items(), key=lambda item: item[1]["recall_at_10"])
        limits.append(f"Weakest category: {name}, Recall@10 {worst['recall_at_10']:.3f} on {worst['photos']:.0f} photos.")
    return limits
