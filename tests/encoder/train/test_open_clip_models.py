"""open_clip's models by every name they have: the same vectors after saving and loading, and one sentence for what is missing."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from serving.contract.files import sha256_file
from serving.contract.manifest import fingerprint
from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.export.onnx_graph import ImageGraph, write_onnx
from tasks.encoder.lookup import as_it_is, from_tower
from tasks.encoder.train.open_clip_models import CONFIG_FILE, find_architecture
from tasks.encoder.train.towers import Teacher, build_teacher, open_teacher
from tasks.errors import TrainingError
from tests.encoder.train.test_weights import CLIP, Touch, as_transformers

pytestmark = pytest.mark.slow

VOCABULARY = 49408
SMALL = CLIP | {"text_cfg": CLIP["text_cfg"] | {"vocab_size": VOCABULARY}}
ON_TIMM = SMALL | {
    "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    "custom_text": True,
}
SIGLIP_SIGHT = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


def repository(folder: Path, model: dict[str, Any] = SMALL, sight: dict[str, Any] | None = None, weights: str = "") -> Path:
    """A folder as open_clip saves a model: its config, and random weights in the file `weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": sight or {}}))
    torch.manual_seed(5)
    kind = open_clip.CustomTextCLIP if model.get("custom_text") else open_clip.CLIP
    made = kind(**{k: v for k, v in model.items() if k != "custom_text"})
    state = {k: v.clone().contiguous() for k, v in made.state_dict().items()}
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    elif weights:
        torch.save(state, folder / weights)
    return folder


def teacher(tower: TowerConfig, size: int = 0) -> tuple[Teacher, EncoderConfig]:
    config = as_it_is(from_tower("shop", tower))
    if size:
        config = replace(config, preprocess=PreprocessSpec(size=size))
    return build_teacher(config).eval(), config


def vectors(made: Teacher, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        return made.image(torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2)))


def words(made: Teacher) -> torch.Tensor:
    with torch.no_grad():
        return made.text(torch.tensor([made.tokenizer().encode("a red mug").ids]))


@pytest.mark.parametrize(
    "weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin", "mine.pth"]
)
def test_a_folder_of_open_clips_is_an_encoder_whatever_its_weights_are_called(tmp_path: Path, weights: str) -> None:
    folder = repository(tmp_path / "model", sight=SIGLIP_SIGHT, weights=weights)
    made, config = teacher(TowerConfig(open_clip=f"local-dir:{folder}"))
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = own.encode_image((pictures - 0.5) / 0.5, normalize=True)
    assert (config.dim, config.preprocess) == (16, PreprocessSpec(size=32, fit="squash"))
    assert (vectors(made) - expected).abs().max() < 1e-5


def test_a_checkpoint_file_of_a_model_of_ones_own_in_every_format(tmp_path: Path) -> None:
    folder = repository(tmp_path / "model", weights="open_clip_model.safetensors")
    expected, _ = teacher(TowerConfig(open_clip=f"local-dir:{folder}"))
    (tmp_path / "shop.json").write_text(json.dumps(SMALL))
    state = expected.state()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "epoch_3.pt")
    torch.save(as_transformers(state), tmp_path / "pytorch_model.bin")
    save_file({k: v.clone().contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    for name in ("epoch_3.pt", "pytorch_model.bin", "model.safetensors"):
        made, _ = teacher(TowerConfig(open_clip=str(tmp_path / "shop.json"), pretrained=str(tmp_path / name)))
        assert (vectors(made) - vectors(expected)).abs().max() < 1e-5, name
        assert (words(made) - words(expected)).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    ("model", "sight", "size"),
    [
        (SMALL, {}, 32),
        (SMALL | {"quick_gelu": True}, {}, 32),
        (SMALL, SIGLIP_SIGHT, 48),
        (ON_TIMM, SIGLIP_SIGHT, 160),
        (ON_TIMM, {}, 96),
    ],
    ids=["gelu", "quick_gelu", "squash at another size", "timm", "timm at another size"],
)
def test_what_is_saved_and_loaded_by_its_path_gives_the_same_vectors(
    tmp_path: Path, model: dict[str, Any], sight: dict[str, Any], size: int
) -> None:
    """open_clip#771: OpenAI's weights, loaded again without their activation, are silently another encoder."""
    folder = repository(tmp_path / "model", model, sight, "open_clip_model.safetensors")
    first, config = teacher(TowerConfig(open_clip=f"local-dir:{folder}"), size)
    saved = tmp_path / "saved"
    saved.mkdir()
    first.write_architecture(saved, size)
    save_file({k: v.clone().contiguous() for k, v in first.state().items()}, saved / "weights.safetensors")
    by_name, again = teacher(TowerConfig(open_clip=f"local-dir:{saved}"))
    by_folder = open_teacher(saved, config).eval()
    by_folder.model.load_state_dict(first.state())
    assert again.preprocess.size == size
    for loaded in (by_name, by_folder):
        assert (vectors(loaded, size) - vectors(first, size)).abs().max() < 1e-5
        assert (words(loaded) - words(first)).abs().max() < 1e-5


@pytest.mark.slow
def test_the_activation_and_the_preprocessing_are_in_the_fingerprint(tmp_path: Path) -> None:
    prints, seen = set(), []
    for name, model, sight in (
        ("plain", SMALL, {}),
        ("quick", SMALL | {"quick_gelu": True}, {}),
        ("mean", SMALL, {"mean": [0.5] * 3}),
        ("squash", SMALL, {"resize_mode": "squash"}),
    ):
        folder = repository(tmp_path / name, model, sight, "open_clip_model.safetensors")
        made, config = teacher(TowerConfig(open_clip=f"local-dir:{folder}"))
        path = tmp_path / f"{'plain' if name == 'squash' else name}.onnx"  # how a picture is made square is in no graph
        if not path.exists():
            write_onnx(ImageGraph(made.image), torch.zeros((2, 32, 32, 3), dtype=torch.uint8), path)
        prints.add(fingerprint(sha256_file(path), config.preprocess))
        seen.append(vectors(made))
    assert len(prints) == 4
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)


def test_the_activation_follows_from_the_tag_where_open_clip_only_warns() -> None:
    def activation(**tower: Any) -> bool:
        return bool(find_architecture(TowerConfig(**tower)).model.get("quick_gelu"))

    assert activation(open_clip="ViT-B-32", pretrained="openai")
    assert activation(open_clip="ViT-B-32-quickgelu", pretrained="weights.pt")
    assert activation(open_clip="ViT-B-32", pretrained="weights.pt", quick_gelu=True)
    assert not activation(open_clip="ViT-B-32", pretrained="datacomp_xl_s13b_b90k")
    assert not activation(open_clip="ViT-B-32", pretrained="weights.pt")


@pytest.mark.parametrize(
    ("name", "tag", "spec", "mean"),
    [
        ("ViT-B-32", "openai", PreprocessSpec(size=224, fit="crop"), 0.48145466),
        ("ViT-B-16-SigLIP2-256", "webli", PreprocessSpec(size=256, fit="squash"), 0.5),
        ("ViT-B-16-SigLIP2-256", "weights.safetensors", PreprocessSpec(size=256, fit="squash"), 0.5),
        ("MobileCLIP2-S0", "dfndr2b", PreprocessSpec(size=256, fit="crop"), 0.0),
    ],
)
def test_preprocessing_comes_from_the_model(name: str, tag: str, spec: PreprocessSpec, mean: float) -> None:
    found = find_architecture(TowerConfig(open_clip=name, pretrained=tag))
    assert found.spec() == spec
    assert found.preprocess["mean"][0] == pytest.approx(mean)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"open_clip": "ViT-B-17"}, "open_clip has no model 'ViT-B-17'"),
    "unknown tag": ({"open_clip": "RN50", "pretrained": "nobody"}, "open_clip has no weights 'nobody' for RN50; it has openai"),
    "gone checkpoint": ({"open_clip": "{}/small.json", "pretrained": "{}/gone.pt"}, "gone.pt of .*small.json does not exist"),
    "gone config": ({"open_clip": "{}/gone.json"}, "the model config .*gone.json cannot be read"),
    "half a config": ({"open_clip": "{}/half.json"}, "half.json lacks text_cfg, vision_cfg; it must be in open_clip's format"),
    "gone folder": ({"open_clip": "local-dir:{}/gone"}, f"the model config .*gone/{CONFIG_FILE} cannot be read"),
    "empty folder": ({"open_clip": "local-dir:{}/empty"}, "empty has no open_clip_model.safetensors, .*: it has no checkpoint"),
    "two unknown files": ({"open_clip": "local-dir:{}/two"}, "and not exactly one other checkpoint: it has a.pt, b.pt"),
    "another architecture": (
        {"open_clip": "{}/small.json", "pretrained": "{}/wide.safetensors"},
        r"wide.safetensors does not fit .*small.json: it has in another shape \d+ tensors \(first: .*\); name the model",
    ),
    "code": ({"open_clip": "{}/small.json", "pretrained": "{}/code.pt"}, "code.pt holds a pickle with code in it"),
    "damage": ({"open_clip": "{}/small.json", "pretrained": "{}/noise.safetensors"}, "noise.safetensors cannot be read"),
    "tokens": ({"open_clip": "{}/coca.json"}, "coca.json is a CoCa model, which gives tokens beside its vector"),
    "bad fields": ({"open_clip": "{}/odd.json"}, "open_clip cannot build the model for pictures of 224 pixels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_model_is_one_sentence(tmp_path: Path, case: str) -> None:
    for name, values in (("small", SMALL), ("half", {"embed_dim": 16}), ("coca", SMALL | {"multimodal_cfg": {}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    (tmp_path / "odd.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": {"wide": 3}, "text_cfg": {}}))
    repository(tmp_path / "empty")
    repository(tmp_path / "two", weights="a.pt")
    torch.save({}, tmp_path / "two" / "b.pt")
    wide = SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"width": 64}}
    repository(tmp_path / "wide", wide, weights="open_clip_model.safetensors").joinpath("open_clip_model.safetensors").rename(
        tmp_path / "wide.safetensors"
    )
    torch.save({"weight": Touch(tmp_path / "ran")}, tmp_path / "code.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"nothing")
    tower, sentence = WRONG[case]
    with pytest.raises(TrainingError, match=sentence) as raised:
        teacher(TowerConfig(**{k: v.format(tmp_path) for k, v in tower.items()}))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a network, and without anything that was downloaded before."""
    import huggingface_hub.constants

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub client waits between its attempts
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("tower", "sentence"),
    [
        (
            {"open_clip": "RN50", "pretrained": "yfcc15m"},
            "weights could not be downloaded .*set `pretrained` to a local checkpoint",
        ),
        ({"open_clip": "ViT-B-32", "pretrained": "datacomp_xl_s13b_b90k"}, "could not be downloaded .*local checkpoint file"),
        ({"open_clip": "hf-hub:Marqo/marqo-ecommerce-embeddings-B"}, "could not be downloaded .*name it local-dir:<folder>"),
        ({"timm": "resnet18", "pretrained": "timm"}, "resnet18: the weights could not be downloaded .*local checkpoint file"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_download_that_cannot_be_had_names_the_local_alternative(tower: dict[str, str], sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence) as raised:
        teacher(TowerConfig(**tower))
    assert "\n" not in str(raised.value)
