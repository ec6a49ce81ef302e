"""The model card, generated from an encoder version's manifest and, once evaluated, its report."""

from serving.contract.manifest import EncoderManifest, Gate
from serving.contract.provenance import QuerySet
from tasks.encoder.evaluate.evaluate import EncoderReport, PairReport
from tasks.queries.query_words import describe


def asked_of(report: EncoderReport, pair: PairReport) -> str:
    """What a pair was asked, in words, and how many: "296 held-out photos"."""
    if pair.asked == "photos":
        return describe(report.queries)
    if pair.asked == "titles":
        return f"{len(pair.ranks)} titles"
    synthetic = report.unseen_synthetic
    return f"{describe(QuerySet.of(len(pair.ranks) - synthetic, synthetic), 'photos')} of unseen products"


def card(manifest: EncoderManifest, report: EncoderReport | None = None, gates: tuple[Gate, ...] = ()) -> str:
    """The card as Markdown; without a report it states that the version is not evaluated yet."""
    recipe, metrics = manifest.recipe, manifest.metrics
    lines = [
        f"# Encoder {manifest.name}",
        "",
        f"Maps pictures of {manifest.preprocess.size} x {manifest.preprocess.size} pixels ({manifest.preprocess.fit})"
        f"{' and texts' if 'text' in manifest.towers else ''} to unit vectors of {manifest.dim} numbers. Documents by "
        f"`{manifest.document}`, queries by `{manifest.query}`.{'' if 'text' in manifest.towers else ' It cannot be asked with words.'}",
        "",
        "## Data",
        "",
        *_data(recipe, report),
        "",
        "## Recipe",
        "",
        *_origin(manifest),
        *_recipe(manifest),
        *_distillation(manifest),
        "",
        *_judged(report, gates),
        "## Export",
        "",
        *_export(recipe, metrics),
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


def facts(manifest: EncoderManifest, report: EncoderReport) -> list[str]:
    """The card's words beside its tables, one Markdown section each: data, recipe and limits."""
    limits = [f"- {limit}" for limit in _limits(manifest, report)]
    recipe = [*_origin(manifest), *_recipe(manifest)]
    sections = {"Data": _data(manifest.recipe, report), "Recipe": recipe, "Limits": limits}
    return ["\n".join([f"**{title}**", "", *lines]) for title, lines in sections.items()]


def _origin(manifest: EncoderManifest) -> list[str]:
    """Where pretrained weights come from, and what was done to them; empty for what was trained here from random ones."""
    lines = []
    if manifest.origin is not None:
        known = f"tag {manifest.origin.tag}" if manifest.origin.tag else f"sha256 `{manifest.origin.sha256[:16]}`"
        lines.append(f"- Weights: {manifest.origin.name}, {known}, licence {manifest.origin.licence}.")
    if manifest.trained is not None:
        lines.append(f"- Training on top of them: {manifest.trained}.")
    chosen = manifest.recipe.get("interpolation")
    if chosen:
        tried = ", ".join(f"{t['share']:g}: {t['recall_at_1']:.3f}" for t in chosen["tried"])
        lines.append(
            f"- Interpolation (WiSE-FT): {chosen['share']:g} of the way from the pretrained weights to the trained ones, chosen by MRR on "
            f"{chosen['photos']} train photos that were not trained on. Recall@1 there by share: {tried}."
        )
    return lines


def _recipe(manifest: EncoderManifest) -> list[str]:
    """Network, training and cost of each tower that was trained here."""
    towers = [t for t in ("teacher", "student") if t in manifest.towers and t in manifest.recipe]
    return [f"- {tower}: {_tower(manifest.recipe, manifest.metrics, tower)}" for tower in towers]


def _distillation(manifest: EncoderManifest) -> list[str]:
    recipe = manifest.recipe
    if "student" not in manifest.towers or "student" not in recipe:
        return []
    return [
        f"- Distillation: alpha {recipe.get('alpha')}, KL temperature {recipe.get('kl_temperature')}, "
        f"cosine weight {recipe.get('cosine_weight')}; seed {recipe.get('seed')}; photos of "
        + (f"the last {recipe['photo_days']} days." if recipe.get("photo_days") else "any age.")
    ]


def _tower(recipe: dict, metrics: dict[str, float], tower: str) -> str:
    network = recipe.get(tower, {})
    start = network.get("pretrained") or "random weights"
    name = network.get("open_clip") or network.get("timm")
    cost = {k: metrics.get(f"{tower}.training.{k}", 0.0) for k in ("steps", "seconds", "peak_memory_bytes")}
    return (
        f"{name} from {start}, {metrics.get(f'{tower}.parameters', 0) / 1e6:.2f}M parameters in the image tower; "
        f"{cost['steps']:.0f} steps in {recipe.get('trained_in', {}).get(tower)} and {cost['seconds']:.0f} s, "
        f"peak memory {cost['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def _data(recipe: dict, report: EncoderReport | None) -> list[str]:
    data = recipe.get("data", {})
    photos = ", ".join(f"{data[f'{split}_photos']} {split}" for split in ("train", "val", "test") if f"{split}_photos" in data)
    lines = []
    if data:
        catalogue = f"`{recipe.get('data_sha256', '')[:16]}`"
        lines.append(f"- Catalogue content {catalogue}: {data.get('products')} products, photos: {photos}.")
    if report is not None:
        lines.append(
            f"- Judged on catalogue content `{report.content_sha256[:16]}`: {report.products} products and "
            f"{describe(report.queries)} (split `{report.split}`), none of which was trained on."
            + (report.orphans and f" {report.orphans.capitalize()}.")
        )
    lines.append(
        "- Splits are by photo and by product: a twentieth of the products, chosen by their ids, is never trained on; photos that "
        "are copies of held-out ones are not either."
    )
    return lines


def _judged(report: EncoderReport | None, gates: tuple[Gate, ...]) -> list[str]:
    if report is None:
        return [
            "## Recall",
            "",
            "Not judged yet: the whole card is `report/card.md` of this version's run in MLflow, once it is judged.",
            "",
        ]
    return [
        "## Recall",
        "",
        "| queries | asked | documents | Recall@1 | Recall@5 | Recall@10 | MRR | mAP |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {p.query} | {asked_of(report, p)} | {p.document} | "
            + " | ".join(f"{r.value:.3f} ({r.low:.3f}-{r.high:.3f})" for r in (*p.recall.values(), p.mrr, p.map))
            + " |"
            for p in report.pairs
        ),
        "",
        "## Gates",
        "",
        *(f"- {'passed' if g.passed else '**failed**'} {g.name}: {g.reason}" for g in gates),
        "",
    ]


def _export(recipe: dict, metrics: dict[str, float]) -> list[str]:
    """Each file's deviation from PyTorch, all int8 methods tried, and the decision."""
    lines = []
    for kind in ("parity", "half"):
        for key in sorted(k for k in metrics if k.endswith(f".{kind}_max_difference")):
            name = key.removesuffix(f".{kind}_max_difference")
            cosine = metrics[f"{name}.{kind}_min_cosine"]
            lines.append(f"- {name}: largest difference from PyTorch {metrics[key]:.1e}, least cosine {cosine:.6f}")
    tried = sorted(k.removesuffix(".ms") for k in metrics if ".int8." in k and k.endswith(".ms"))
    if tried:
        lines += ["", "| query variant tried | MRR | mean cosine to fp32 | ms, one picture |", "|---|---|---|---|"]
    for name in [f"{tried[0].partition('.')[0]}.fp32", *tried] if tried else []:
        mrr = metrics.get(f"{name}.mrr")
        shown = "not measured" if mrr is None else f"{mrr:.3f}"
        lines.append(f"| {name} | {shown} | {metrics[f'{name}.cosine']:.4f} | {metrics[f'{name}.ms']:.2f} |")
    notes = recipe.get("notes", {})
    return [*lines, *([""] if notes else []), *(f"- {name}: {note}" for name, note in notes.items())]


def _limits(manifest: EncoderManifest, report: EncoderReport | None) -> list[str]:
    limits = ["Figures hold for catalogues like this one."]
    if "student" in manifest.towers and "int8" not in manifest.towers["student"]:
        limits.append("Ships without int8: it lost more recall than the gate allows.")
    limits += [
        f"Ships without {tower}.fp16; the reason is under Export."
        for tower in ("teacher", "student")
        if tower in manifest.towers and "fp16" not in manifest.towers[tower]
    ]
    pair = report.pair(report.query) if report is not None else None
    if report is not None and pair is not None:
        limits.append(f"{describe(report.queries, 'photos')} give the intervals above.")
        if report.queries and report.queries.synthetic:
            limits.append(
                "Synthetic queries are views of product pictures (other background, crop, light, blur, JPEG). They are easier than "
                "shoppers' photos, most of all for a tower that was trained on those pictures."
            )
        if pair.slices:
            name, worst = min(pair.slices.items(), key=lambda item: item[1]["recall_at_10"])
            limits.append(f"Weakest category: {name}, Recall@10 {worst['recall_at_10']:.3f} on {worst['photos']:.0f} of them.")
    return limits
