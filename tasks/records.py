"""What the steps of a pipeline hand to each other: records, and how they travel as JSON.

A record is small and refers to what is large by the URI of the store (tasks/storage.py): the next step may run on another machine,
so it never holds the path of a file on the disk of the worker that made it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from serving.contract.files import first_error
from tasks.errors import VitrineError


class RecordError(VitrineError):
    """The JSON of a record is not what its reader expects."""


class Record:
    """Base of a frozen dataclass that one step returns and another one takes. An unknown field is an error."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        value: dict[str, Any] = to_json(self)
        return value

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The record of its JSON. Raises RecordError naming the field that is wrong."""
        record: Self = from_json(cls, value)
        return record


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(value: Any) -> Any:
    """A record, or a list of records, as plain JSON values; anything else as it is."""
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    kind: Any = type(value)
    is_record = isinstance(value, Record) or hasattr(value, "model_dump")
    return _adapter(kind).dump_python(value, mode="json") if is_record else value


def from_json(kind: Any, value: Any) -> Any:
    """A value of type `kind` (a record, a list of them, a plain type) from JSON. Raises RecordError naming the field that is wrong."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise RecordError(
            f"the result of an earlier step is not a {name}: {first_error(error, name)}; if another release made it, clear that step "
            "so that it runs again"
        ) from None


def call_step(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a step with the JSON of its arguments, and returns its result as JSON.

    Each of the function's parameters takes the argument of its name, as the type of its annotation. Other arguments are ignored.
    """
    kinds = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name in arguments]
    return to_json(function(**{name: from_json(kinds[name], _plain(arguments[name])) for name in names}))


def _plain(value: Any) -> Any:
    """What mapped tasks returned is a lazy sequence; here it is a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
