"""The handful of errors a step may raise on purpose. Their message is one sentence: what, value, expected, what next."""


class VitrineError(Exception):
    """Something a person must mend; the message says what and how."""


class SettingsError(VitrineError):
    """A setting that is missing or makes no sense."""


class InputMissing(VitrineError):
    """What a pipeline works on does not exist: no catalogue, no champion, no index version. A scheduled run waits for the first one."""


class CatalogError(VitrineError):
    """The catalogue, or a snapshot of it, is not usable as it is."""


class CatalogMissing(CatalogError, InputMissing):
    """There is no catalogue, or no product in it."""


class ValidationFailed(VitrineError):
    """A Great Expectations suite failed; the message names the expectation, the observed value and sample ids.

    `links` are the addresses (by name) where a person sees more.
    """

    def __init__(self, message: str, links: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.links = links or {}


class TrainingError(VitrineError):
    """Training cannot start or go on (empty class, NaN loss, damaged checkpoint, missing weights)."""


class GateFailed(VitrineError):
    """A version did not pass its gates; nothing was promoted."""
