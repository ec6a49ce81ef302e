"""The terminal's client of Airflow: a slow answer is asked for again, unless the call changes something."""

import httpx
import pytest

from tasks.demo.airflow import QUESTIONS, Airflow
from tasks.errors import VitrineError


@pytest.fixture
def slow() -> tuple[Airflow, list[str]]:
    """A client whose server answers a path's third call only, and what was asked of it."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if len(asked) < 3 or request.url.path.endswith("never"):
            raise httpx.ReadTimeout("timed out", request=request)
        return httpx.Response(200, json={"state": "success"})

    client = Airflow("http://airflow", "admin", "secret")
    client.client = httpx.Client(base_url=client.url, transport=httpx.MockTransport(answer))
    return client, asked


def test_a_question_is_asked_again_until_it_is_answered(slow: tuple[Airflow, list[str]]) -> None:
    client, asked = slow
    assert client.run("train_encoder", "one") == {"state": "success"}
    assert asked == ["GET /api/v2/dags/train_encoder/dagRuns/one"] * 3


def test_what_never_answers_is_named_and_what_changes_something_is_asked_once(slow: tuple[Airflow, list[str]]) -> None:
    client, asked = slow
    with pytest.raises(VitrineError, match="does not answer"):
        client.run("train_encoder", "never")
    assert len(asked) == QUESTIONS
    with pytest.raises(VitrineError, match="does not answer"):
        client.call("POST", "/never")
    assert len(asked) == QUESTIONS + 1
