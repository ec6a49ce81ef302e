"""What `vitrine` says of an error: one sentence for a person, or nothing, where only a traceback helps."""

import sys

from serving.contract.addresses import error_line, hide_secrets, without_secrets
from serving.contract.files import ContractError
from tasks.errors import SettingsError, VitrineError
from tasks.masking import public_text
from tasks.settings import Settings

REFUSALS = (401, 403)


def sentence_of(error: Exception) -> str:
    """The sentence for an error of ours, of MLflow, or of the machine's files and network; "" for what nobody expected."""
    if isinstance(error, VitrineError | ContractError):
        return _public(str(error))
    if "mlflow" in sys.modules and (sentence := _of_mlflow(error)):
        return sentence
    if "httpx" in sys.modules and (sentence := _of_http(error)):
        return sentence
    if isinstance(error, OSError):
        return _public(f"{error.strerror}: {error.filename}" if error.filename else error_line(error))
    return ""


def _of_mlflow(error: Exception) -> str:
    from mlflow.exceptions import MlflowException

    from tasks.registry import unreachable

    if not isinstance(error, MlflowException):
        return ""
    uri = without_secrets(Settings.load().mlflow_uri)
    if "://" not in uri:
        return f"VITRINE_MLFLOW_URI={uri!r} is no address of an MLflow server, which is like http://127.0.0.1:5000"
    if unreachable(error):
        return f"MLflow does not answer at {uri}; start it, or set VITRINE_MLFLOW_URI to where it is"
    if error.get_http_status_code() in REFUSALS:
        return (
            f"MLflow at {uri} does not let this user do that: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one who "
            f"may ({error_line(error, 160)})"
        )
    return f"MLflow at {uri} does not answer as it should: {error_line(error, 300)}"


def _of_http(error: Exception) -> str:
    import httpx

    if not isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return ""
    return _public(f"a server does not answer as it should: {type(error).__name__}, {error_line(error)}")


def _public(sentence: str) -> str:
    """The sentence without secrets, also where it is the settings that cannot be read."""
    try:
        return public_text(sentence, Settings.load())
    except SettingsError:
        return hide_secrets(sentence)
