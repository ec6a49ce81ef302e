"""Errors that a step raises on purpose. The message is one sentence: what, value, expected, what to do next."""


class VitrineError(Exception):
    """Base of errors that a person has to fix; the message says what and how."""


class SettingsError(VitrineError):
    """A setting is missing or invalid."""


class InputMissing(VitrineError):
    """A pipeline's input does not exist yet (catalogue, champion, index version). Scheduled runs wait for the first one."""


class CatalogError(VitrineError):
    """The catalogue, or a snapshot of it, is unusable as it is."""


class ServiceAway(VitrineError):
    """A service that the step needs does not answer. In Airflow the step is tried again, as this may pass."""


class StoreAway(ServiceAway):
    """The object store does not answer, refuses for now, or its answers break off."""


class CatalogAway(CatalogError, ServiceAway):
    """The database or queue of the catalogue does not answer."""


class CatalogMissing(CatalogError, InputMissing):
    """There is no catalogue, or it has no products."""


class ValidationFailed(VitrineError):
    """A Great Expectations suite failed; the message names the expectation, the observed value and sample ids.

    `links` are the addresses (by name) where a person sees more.
    """

    def __init__(self, message: str, links: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.links = links or {}


class TrainingError(VitrineError):
    """Training cannot start or continue (empty class, NaN loss, damaged checkpoint, missing weights)."""


class GateFailed(VitrineError):
    """A version failed its gates; nothing was promoted."""
