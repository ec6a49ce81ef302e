"""Addresses: their paths are read as they are written, and they are shown without secrets."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contract.addresses import (
    error_line,
    hide_secrets,
    local_path,
    scheme,
    secret_texts,
    sqlite_uri,
    without_secrets,
    without_userinfo,
)
from serving.contract.child_environment import CLOUD, child_environment, secrets_withheld


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/a/C# 100% shop", "/a/C# 100% shop"),
        ("a b.jpg", "a b.jpg"),
        ("50%25.jpg", "50%25.jpg"),
        ("file:///a/C%23%20100%25%20shop%20%C3%BC%3F", "/a/C# 100% shop ü?"),
        ("file://localhost/a%20b", "/a b"),
        ("FILE:///a", "/a"),
    ],
)
def test_a_local_path_is_decoded_only_in_a_file_uri(address: str, path: str) -> None:
    assert local_path(address) == Path(path)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://shop:s3cret@db:5432/shop", "postgresql://********@db:5432/shop"),
        (
            "postgresql://shop@db/shop?sslmode=require&password=s3cret",
            "postgresql://********@db/shop?sslmode=require&password=********",
        ),
        ("postgresql://shop:pa/ss@db/shop", "postgresql://********@db/shop"),
        ("postgresql://shop:pa@ss@db/shop", "postgresql://********@db/shop"),
        ("postgresql://shop:p@a/ss@db/shop", "postgresql://********@db/shop"),
        ("postgresql://shop:pa?ss@db/shop", "postgresql://********@db/shop"),
        ("postgresql://shop:pa?s=s@db/shop?sslmode=require", "postgresql://********@db/shop?sslmode=require"),
        ("redis://:pa/s?s@host:6379/0", "redis://********@host:6379/0"),
        ("https://cdn.example:8080/a.jpg?by=me@work", "https://cdn.example:8080/a.jpg?by=me@work"),
        ("https://user:pw@cdn.example?by=me@work", "https://********@cdn.example?by=me@work"),
        ("https://token@host/path", "https://********@host/path"),
        ("redis://:pw@host:6379/0", "redis://********@host:6379/0"),
        ("s3://bucket/key?X-Amz-Signature=abc&X-Amz-Date=1", "s3://bucket/key?X-Amz-Signature=********&X-Amz-Date=1"),
        ("https://cdn.example/shoe@2x.jpg", "https://cdn.example/shoe@2x.jpg"),
        ("https://cdn.example:8080/shoe@2x.jpg", "https://cdn.example:8080/shoe@2x.jpg"),
        ("sqlite:////home/me@work/shop.db", "sqlite:////home/me@work/shop.db"),
        ("/plain/path?token=kept", "/plain/path?token=kept"),
        ("kafka://a:9092,b:9092/topic?group=vitrine", "kafka://a:9092,b:9092/topic?group=vitrine"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert without_secrets(shown) == shown
    assert hide_secrets(f"cannot open '{address}', is it up?") == f"cannot open '{shown}', is it up?"


def test_a_link_is_without_user_and_password() -> None:
    for address in (
        "http://user:p%2Fw@mlflow:5000",
        "http://user:p@w/x@mlflow:5000",
        "http://token@mlflow:5000",
        "http://mlflow:5000",
    ):
        assert without_userinfo(f"{address}/a.jpg?workflowType=machine_learning") == (
            "http://mlflow:5000/a.jpg?workflowType=machine_learning"
        )
    assert without_userinfo("sqlite:///mlruns/a@b.db") == "sqlite:///mlruns/a@b.db"


def test_secrets_are_withheld_from_a_child_that_inherits_and_are_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_CATALOG", "postgresql://shop:secret@db/shop")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "kept")
    with secrets_withheld(CLOUD):
        assert "VITRINE_CATALOG" not in os.environ
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == "kept"
    assert os.environ["VITRINE_CATALOG"] == "postgresql://shop:secret@db/shop"


def test_a_library_s_words_about_an_address_hide_its_password_in_either_form() -> None:
    address = "postgresql://shop:p%40ss%25word@db/shop"
    assert set(secret_texts(address)) == {"p%40ss%25word", "p@ss%word"}
    assert hide_secrets('invalid token: "p@ss%word" (p%40ss%25word)', address) == 'invalid token: "********" (********)'
    assert hide_secrets("database shop is not there", "postgresql://shop@db/shop") == "database shop is not there"


@settings(deadline=None)
@given(st.text("/?#@:[]%&=\\;!$*+a", max_size=4))
def test_no_character_of_a_password_shows_a_part_of_it(between: str) -> None:
    address = f"postgresql://shop:hid{between}den@db:5432/shop?sslmode=require"
    for shown in (without_secrets(address), hide_secrets(f"no {address}, is it up?"), without_userinfo(address)):
        assert "hid" not in shown
    assert "hid" not in hide_secrets(f'no token: "hid{between}den"', address)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_may_be_an_address(text: str) -> None:
    for address in (text, f"postgresql://{text}", f"https://u:{text}@h/p"):
        assert isinstance(without_secrets(address), str)
        assert isinstance(hide_secrets(address, address), str)
        scheme(address)
        local_path(address)


def test_sqlite_opens_a_file_of_any_name(tmp_path: Path) -> None:
    import sqlite3

    folder = tmp_path / "C# 100% shop ü?"
    folder.mkdir()
    sqlite3.connect(sqlite_uri(folder / "a?b#c%.db"), uri=True).execute("CREATE TABLE t (a)")
    assert [p.name for p in folder.iterdir()] == ["a?b#c%.db"]
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_child_gets_no_secret_but_those_it_needs() -> None:
    environ = {
        "PATH": "/bin", "VITRINE_HOME": "/h", "VITRINE_ADMIN_TOKEN": "t", "VITRINE_CATALOG": "postgresql://a:b@c/d",
        "AIRFLOW__CORE__FERNET_KEY": "k", "AWS_SECRET_ACCESS_KEY": "s", "VITRINE_STORE": "s3://bucket", "DB_PASSWORD": "p",
        "VITRINE_ALERT_URL": "https://chat.example/hook/abc", "VITRINE_CHANGES": "outbox:postgresql://shop:pw@db/shop",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;Account=b", "AIRFLOW_CONN_DB": '{"login": "u", "pass": "p"}',
    }  # fmt: skip
    assert child_environment(environ) == {"PATH": "/bin", "VITRINE_HOME": "/h", "VITRINE_STORE": "s3://bucket"}
    assert set(child_environment(environ, ("AWS_",))) == {"PATH", "VITRINE_HOME", "VITRINE_STORE", "AWS_SECRET_ACCESS_KEY"}


def test_an_address_behind_its_kind_and_one_in_a_parameter_are_shown_without_secrets() -> None:
    assert without_secrets("outbox:postgresql://shop:pw@db/shop") == "outbox:postgresql://********@db/shop"
    shown = without_secrets("delta:s3://bucket/products?image_root=https://u:pw@cdn.example/a")
    assert shown == "delta:s3://bucket/products?image_root=https://********@cdn.example/a"
    assert "pw1" not in hide_secrets("no answer with pw1", "compare:postgresql://shop:pw1@db/shop")


def test_the_shells_working_folders_are_no_passwords() -> None:
    given = {"PWD": "/shop", "OLDPWD": "/", "DB_PWD": "s3cret"}
    assert child_environment(given) == {"PWD": "/shop", "OLDPWD": "/"}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  no postgresql://shop:pw@db/shop \nHINT: none"), "no postgresql://********@db/shop "),
        (TimeoutError(), "TimeoutError"),
        (ValueError("x" * 501), "x" * 500),
    ],
)
def test_an_error_is_shown_by_its_first_line_without_secrets(error: Exception, line: str) -> None:
    assert error_line(error) == line
    assert error_line(error, 3) == line[:3]
