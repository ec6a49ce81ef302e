"""Reads the ranker weights and business rules that go into a version's manifest."""

import json
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from serving.contract.files import first_error
from serving.ranking.features import Features
from serving.ranking.filters import FilterError
from serving.ranking.ranker import RankerConfig
from tasks import storage
from tasks.errors import SettingsError


def read_ranker(uri: str, columns: pa.Schema | None = None) -> dict[str, Any]:
    """The RankerConfig overrides of a JSON file (local or s3://); {} without a uri.

    Raises SettingsError with the first thing that is wrong with it. Whether its rules' columns exist is only asked of `columns`,
    those of an index version's row tables; a version that lacks one cannot be opened.
    """
    if not uri:
        return {}
    try:
        config = RankerConfig.model_validate(storage.read_json(uri))
        if columns is not None:
            config.rules.check(Features(columns.empty_table()))
    except OSError as error:
        raise SettingsError(f"VITRINE_RANKER={uri!r} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise SettingsError(f"{uri} is not JSON: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{uri} holds no weights and rules: {first_error(error, 'the file')}") from None
    except FilterError as error:
        raise SettingsError(f"{uri}: {error}") from None
    return config.model_dump(mode="json", exclude_defaults=True)
