"""The environment that child processes get: without variables that hold secrets which they do not need."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serving.contract.addresses import hide_secrets

SECRET_NAME = re.compile(
    r"PASS|PWD|SECRET|TOKEN|CREDENTIAL|WEBHOOK|FERNET|_KEYS?(_|$)|APIKEY|PRIVATE|CONNECTION_STRING|^AIRFLOW_CONN_|JAAS|ALERT_URL",
    re.IGNORECASE,
)
FOLDERS = ("PWD", "OLDPWD")
"""The shell's working folders, which are no passwords."""
CLOUD = ("AWS_",)
"""Prefixes of the variables that a child needs which reads or writes objects itself."""


def child_environment(environ: Mapping[str, str], keep: tuple[str, ...] = ()) -> dict[str, str]:
    """`environ` without secrets: variables with a secret's name, and addresses that carry a password.

    Variables whose names start with one of `keep` stay.
    """
    return {name: value for name, value in environ.items() if name.startswith(keep) or not holds_secret(name, value)}


@contextmanager
def secrets_withheld(keep: tuple[str, ...] = ()) -> Iterator[None]:
    """Takes the same variables out of this process's environment while a library starts a child that inherits it."""
    left = child_environment(os.environ, keep)
    withheld = {name: value for name, value in os.environ.items() if name not in left}
    for name in withheld:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(withheld)


def holds_secret(name: str, value: str) -> bool:
    """Whether a variable's name says that it is a secret, or its value holds an address with a password or token in it."""
    return bool(value) and name not in FOLDERS and (SECRET_NAME.search(name) is not None or hide_secrets(value) != value)
