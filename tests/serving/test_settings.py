"""A replica's settings: what does not parse, is out of bounds or names nothing stops the start with one sentence."""

from pathlib import Path

import pytest

from serving.app import create_app
from serving.settings import REMOVED, ServingSettings


def test_numbers_at_their_bounds_are_taken() -> None:
    chosen = ServingSettings.load(
        {"VITRINE_WORKERS": "1", "VITRINE_HEDGES": "0", "VITRINE_SAMPLE_RATE": "1", "VITRINE_QUEUE": "0"}
    )
    assert (chosen.workers, chosen.hedges, chosen.sample_rate, chosen.queue) == (1, 0.0, 1.0, 0)
    assert ServingSettings.load({}) == ServingSettings()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("WORKERS", "0", "at least 1 is needed"),
        ("PORT", "70000", "at least 0 and at most 65535 is needed"),
        ("POLL_S", "0", "at least 0.01 and at most 86400 is needed"),
        ("DEADLINE_S", "nan", "is out of bounds"),
        ("BODY_S", "inf", "is out of bounds"),
        ("HEDGES", "5", "at least 0 and at most 1 is needed"),
        ("QUEUE", "-1", "at least 0 is needed"),
        ("THREADS", "two", "is not a whole number"),
    ],
)
def test_a_number_that_makes_no_sense_is_one_sentence(name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^VITRINE_{name}='{text}' .*{words}"):
        ServingSettings.load({f"VITRINE_{name}": text})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VITRINE_ADMIN_TOKEN", "hidden\nhidden", "character 7 of it is a line break"),
        ("VITRINE_ENGINE_TOKEN", "root:hidden\x00", "character 12 of it is a control character"),
        ("VITRINE_ADMIN_TOKEN", "hiddén", "character 5 of it is no ASCII character"),
        ("MLFLOW_TRACKING_TOKEN", "hidden\nhidden", "character 7 of it is a line break"),
        ("AWS_SESSION_TOKEN", "hidden\n", "begins or ends with a line break or a space"),
    ],
)
def test_a_secret_that_no_header_can_carry_is_one_sentence_without_it(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}:? {says}, which no HTTP header can carry") as raised:
        ServingSettings.load({name: value})
    assert "hidd" not in str(raised.value)


def test_the_line_break_that_ends_a_file_of_secrets_is_no_part_of_them() -> None:
    assert ServingSettings.load({"VITRINE_ADMIN_TOKEN": "a token\r\n"}).admin_token == "a token"


@pytest.mark.parametrize("name", REMOVED)
def test_a_setting_of_an_earlier_version_is_ignored_with_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert ServingSettings.load({f"VITRINE_{name.upper()}": "8"}) == ServingSettings()
    assert caplog.messages == [
        f"VITRINE_{name.upper()} is ignored: searches are no longer worked on together; take it out of the environment"
    ]


def test_a_folder_that_holds_no_release_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"VITRINE_RELEASE='.*' holds no release: there is no aliases.json in it"):
        create_app(ServingSettings(release=str(tmp_path)))
    with pytest.raises(ValueError, match="there is no such folder"):
        create_app(ServingSettings(release=str(tmp_path / "relaese")))
