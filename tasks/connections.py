"""Settings that name a connection of Airflow, as airflow://conn_id: where Airflow's own connections or its secret backend hold them.

Only a process of Airflow can read a connection, so it gives the function that does (dags/credentials.py, plugins/vitrine.py).
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from tasks.errors import SettingsError
from tasks.settings import PREFIX, Settings, as_variables

SCHEME = "airflow://"
ENGINE_TOKEN = "VITRINE_ENGINE_TOKEN"
"""Of a connection that has a login this is login:password."""
TOKENS = ("VITRINE_ADMIN_TOKEN", "VITRINE_WEBHOOK_SECRET", "VITRINE_AIRFLOW_PASSWORD", ENGINE_TOKEN)
"""Settings that are no addresses: they take the connection's password."""
SERVICES = {"VITRINE_CATALOG": "postgresql", "VITRINE_REDIS_URL": "redis"}
"""The scheme of an address whose connection is generic, as Airflow makes every connection whose provider it lacks; others: http."""
CREDENTIALS = "VITRINE_STORE_CREDENTIALS"
"""The setting whose connection becomes the AWS_ variables that every part reads."""


class Connection(Protocol):
    """What is read of Airflow's connection."""

    conn_type: str
    host: str | None
    schema: str | None
    login: str | None
    password: str | None
    port: int | None

    @property
    def extra_dejson(self) -> dict[str, Any]: ...


def named_connections(environ: Mapping[str, str]) -> dict[str, str]:
    """The connection ids by the variables of settings that name one."""
    return {
        name: value.removeprefix(SCHEME)
        for name, value in environ.items()
        if name.startswith(PREFIX) and value.startswith(SCHEME)
    }


def resolve_connections(environ: MutableMapping[str, str], read: Callable[[str], Connection]) -> None:
    """Puts the addresses, tokens and AWS credentials of the named connections into `environ`, also of settings in `.env` and the home's
    file, before which the environment counts. Run again, it does nothing.

    Raises SettingsError for a connection without what the setting needs, and what `read` raises.
    """
    for name, conn_id in named_connections(as_variables(Settings.load(environ)) | dict(environ)).items():
        found = read(conn_id)
        if name == CREDENTIALS:
            environ.update(aws_variables(found))
            environ[name] = ""
        else:
            environ[name] = token_of(found, name) if name in TOKENS else address_of(found, SERVICES.get(name, "http"))
            if not environ[name]:
                raise SettingsError(f"{name}={SCHEME}{conn_id}: that connection of Airflow has no password")


def token_of(connection: Connection, name: str) -> str:
    """What the setting `name` of TOKENS takes of a connection; "" where it has no password."""
    password = connection.password or ""
    return f"{connection.login}:{password}" if name == ENGINE_TOKEN and connection.login and password else password


def address_of(connection: Connection, service: str = "http") -> str:
    """A connection as an address: scheme://login:password@host:port/schema?extra, each part percent-encoded.

    `service` is the scheme where neither type nor host says one.

    Unlike Airflow's own `get_uri` it speaks of postgresql:// and of https:// where the connection's schema or host says so.
    """
    scheme, _, host = (connection.host or "").rpartition("://")
    kind = {"postgres": "postgresql", "generic": service}.get(connection.conn_type, connection.conn_type)
    path = connection.schema or ""
    if kind == "http" and path in ("http", "https"):
        scheme, path = path, ""
    login = quote(connection.login or "", safe="")
    password = f":{quote(connection.password, safe='')}" if connection.password else ""
    where = f"{login}{password}@{host}" if login or password else host
    port = f":{connection.port}" if connection.port else ""
    query = urlencode(connection.extra_dejson, quote_via=quote)
    return (
        f"{scheme or kind}://{where}{port}" + (f"/{path}" if path else "") + (f"{'' if path else '/'}?{query}" if query else "")
    )


def aws_variables(connection: Connection) -> dict[str, str]:
    """The AWS_ variables of a connection of type aws: login and password are the keys; extra may hold region_name, endpoint_url,
    aws_session_token."""
    extra = connection.extra_dejson
    found = {
        "AWS_ACCESS_KEY_ID": connection.login, "AWS_SECRET_ACCESS_KEY": connection.password,
        "AWS_SESSION_TOKEN": extra.get("aws_session_token"), "AWS_DEFAULT_REGION": extra.get("region_name"),
        "AWS_ENDPOINT_URL": extra.get("endpoint_url"),
    }  # fmt: skip
    return {name: str(value) for name, value in found.items() if value}
