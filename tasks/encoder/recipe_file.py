"""Reads a recipe of one's own: a TOML file with the fields of EncoderConfig, every mistake one sentence."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serving.contract.files import first_error
from tasks.encoder.config import FOLDER, EncoderConfig, TowerConfig
from tasks.encoder.lookup import find_encoder, from_tower
from tasks.encoder.presets import tiny
from tasks.errors import TrainingError

BASE = "base"
"""The key that names an encoder (a preset, or any other name) whose fields count where the file says nothing."""


def read_recipe(path: str | Path) -> EncoderConfig:
    """The config in a recipe file. Without `base`, what is not said follows from the teacher's own model.

    Relative paths of weights and folders are those from the file's folder. Raises TrainingError.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"the recipe {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"the recipe {path} is not TOML: {error}") from None
    base = values.pop(BASE, None)
    if base is not None and not isinstance(base, str):
        raise TrainingError(f"{path}: {BASE} is {base!r}; give the name of an encoder")
    _check_fields(values, tiny().as_dict(), path, "")
    for tower in ("teacher", "student"):
        values[tower] = _from_here(values[tower], path.parent) if tower in values else None
    values = {k: v for k, v in values.items() if v is not None}
    if base is not None:
        start = find_encoder(base)
    elif "teacher" in values:
        start = from_tower(path.stem, _validated(TowerConfig, values["teacher"], path, "teacher"))
    else:
        raise TrainingError(f"{path}: there is no [teacher] and no {BASE}; name the network, or the encoder to start from")
    config = _validated(EncoderConfig, _merged(start.as_dict(), {"name": path.stem} | values), path, "")
    for problem in config.problems():
        raise TrainingError(f"{path}: {problem}")
    return config


def _check_fields(values: dict[str, Any], known: dict[str, Any], path: Path, where: str) -> None:
    """Raises TrainingError for a field that there is not, or a table where a value belongs."""
    for name, value in values.items():
        if name not in known:
            raise TrainingError(f"{path}: there is no field {where}{name}; there are {', '.join(sorted(known))}")
        if isinstance(known[name], dict) != isinstance(value, dict):
            kind = "a table" if isinstance(known[name], dict) else "a single value"
            raise TrainingError(f"{path}: {where}{name} is {value!r}; {kind} is expected")
        if isinstance(value, dict):
            _check_fields(value, known[name], path, f"{where}{name}.")


def _from_here(tower: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A tower whose relative paths are those from the recipe's folder."""
    made = dict(tower)
    if (folder / str(made.get("pretrained") or ".")).is_file():
        made["pretrained"] = str(folder / made["pretrained"])
    name = str(made.get("open_clip", ""))
    if name.endswith(".json"):
        made["open_clip"] = str(folder / name)
    elif name.startswith(FOLDER):
        made["open_clip"] = f"{FOLDER}{folder / name.removeprefix(FOLDER)}"
    return made


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` in it, table by table; a tower that is named is another one, not a changed one."""
    whole = {k: v for k, v in changes.items() if not isinstance(v, dict) or k in ("teacher", "student")}
    return base | whole | {k: _merged(base[k], v) for k, v in changes.items() if k not in whole}


def _validated(kind: Any, values: dict[str, Any], path: Path, whole: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        value = error.errors()[0]["input"]
        raise TrainingError(f"{path}: {first_error(error, whole)} (it is {value!r})") from None
