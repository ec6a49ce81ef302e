"""Settings that name connections of Airflow become addresses, tokens and AWS variables."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from tasks.catalog.sources.postgresql import split_image_root
from tasks.connections import TOKENS, address_of, named_connections, resolve_connections
from tasks.errors import SettingsError
from tasks.settings import HOME_FILE, Settings, variable


@dataclass
class Held:
    """A connection as Airflow gives it."""

    conn_type: str
    host: str | None = None
    schema: str | None = None
    login: str | None = None
    password: str | None = None
    port: int | None = None
    extra_dejson: dict[str, Any] = field(default_factory=dict)


SHOP = Held("postgres", "db.shop", "shop", "reader", "p@ss/word", 5432, {"image_root": "s3://pictures/a b", "sslmode": "require"})


@pytest.mark.parametrize(
    ("held", "address"),
    [
        (Held("http", "mlflow.shop", "https", "us er", "a:b", 8443), "https://us%20er:a%3Ab@mlflow.shop:8443"),
        (Held("http", "https://mlflow.shop/base"), "https://mlflow.shop/base"),
        (Held("redis", "features", None, None, "pw", 6379, {"db": 2}), "redis://:pw@features:6379/?db=2"),
        (Held("http", "chat.shop", "https"), "https://chat.shop"),
        (Held("generic", "mlflow", None, None, None, 5000), "http://mlflow:5000"),
    ],
)
def test_a_connection_becomes_the_address_that_its_service_is_known_by(held: Held, address: str) -> None:
    assert address_of(held) == address


def test_a_databases_extra_becomes_parameters_of_its_address() -> None:
    uri, root = split_image_root(address_of(SHOP))
    assert uri == "postgresql://reader:p%40ss%2Fword@db.shop:5432/shop?sslmode=require"
    assert root == "s3://pictures/a b"


def test_every_setting_that_names_a_connection_is_replaced_and_no_other() -> None:
    held = {
        "shop": SHOP, "token": Held("generic", password="t0ken"),
        "store": Held("aws", None, None, "key", "secret", None, {"region_name": "eu-west-1", "endpoint_url": "https://s3.shop"}),
    }  # fmt: skip
    environ = {
        "VITRINE_CATALOG": "airflow://shop", "VITRINE_ADMIN_TOKEN": "airflow://token", "VITRINE_STORE_CREDENTIALS": "airflow://store",
        "VITRINE_STORE": "s3://shop", "OTHER": "airflow://shop",
    }  # fmt: skip
    resolve_connections(environ, held.__getitem__)
    assert environ == {
        "VITRINE_CATALOG": address_of(SHOP), "VITRINE_ADMIN_TOKEN": "t0ken", "VITRINE_STORE_CREDENTIALS": "", "VITRINE_STORE": "s3://shop",
        "OTHER": "airflow://shop", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "https://s3.shop",
    }  # fmt: skip
    assert named_connections(environ) == {}


def test_a_setting_in_the_homes_file_may_name_a_connection_too(tmp_path: Path) -> None:
    environ = {"VITRINE_HOME": str(tmp_path)}
    (tmp_path / HOME_FILE).write_text("VITRINE_ADMIN_TOKEN='airflow://token'\n")
    resolve_connections(environ, lambda _: Held("generic", password="t0ken"))
    assert environ["VITRINE_ADMIN_TOKEN"] == "t0ken"
    resolve_connections(environ, lambda _: pytest.fail("it was resolved"))


def test_a_token_without_a_password_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"VITRINE_ADMIN_TOKEN=airflow://empty: that connection of Airflow has no password"):
        resolve_connections({"VITRINE_ADMIN_TOKEN": "airflow://empty"}, lambda _: Held("generic"))


def test_every_secret_setting_that_is_no_address_takes_the_password() -> None:
    secret = {variable(f.name) for f in fields(Settings) if f.metadata.get("secret")}
    assert {name for name in secret if not name.endswith("_URL")} == set(TOKENS)


@pytest.mark.parametrize(("login", "token"), [(None, "key"), ("root", "root:key")])
def test_an_engines_token_is_a_key_or_a_user_with_a_password(login: str | None, token: str) -> None:
    environ = {"VITRINE_ENGINE_TOKEN": "airflow://milvus"}
    resolve_connections(environ, lambda _: Held("generic", "milvus.shop", login=login, password="key"))
    assert environ == {"VITRINE_ENGINE_TOKEN": token}
