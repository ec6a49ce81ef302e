"""schemathesis: made-up requests from the OpenAPI document, right and wrong ones; every answer must be as the document says."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks, not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.running import Served
from tests.serving.replica.conftest import TOKEN, open_app
from tests.serving.replica.storefront import Storefront

pytestmark = pytest.mark.slow

ADMIN = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = [
    "POST /v1/search", "GET /v1/search", "POST /v1/search/batch", "GET /v1/products/{product_id}/similar", "GET /v1/images/{product_id}",
    "GET /v1/version", "GET /healthz", "GET /readyz", "GET /metrics", "GET /v1/samples", "POST /v1/follow", "POST /v1/hooks/mlflow",
]  # fmt: skip
WITH_INPUT = [label for label in OPERATIONS if "search" in label or "similar" in label or "samples" in label]
"""What can be asked wrongly."""
UNSAID = [label for label in WITH_INPUT if "samples" not in label and "batch" not in label]
"""What may be asked rightly by the document and yet be refused. It cannot say that a photo's bytes are a picture, a vector as long as
the version's and of unit length, a column one of the version's, words only for a text tower, one of three parameters of a GET."""


@pytest.fixture(scope="module")
def document(front: Storefront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    store = front.copy(tmp_path_factory.mktemp("schema") / "release")
    store.point(green="2")
    with Served(open_app(store, sample_rate=1.0)) as served:
        found = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        found.config.update(headers=ADMIN)  # so that these are not among what it makes up
        yield found


def test_every_operation_is_tried(document: schemathesis.BaseSchema) -> None:
    assert sorted(o.ok().label for o in document.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, GenerationMode.POSITIVE) for label in OPERATIONS] + [(label, GenerationMode.NEGATIVE) for label in WITH_INPUT],
)
def test_every_answer_is_one_that_the_document_names(document: schemathesis.BaseSchema, label: str, mode: GenerationMode) -> None:
    operation = next(o.ok() for o in document.get_all_operations() if o.ok().label == label)
    load_all_checks()
    checks = [c for c in CHECKS.get_all() if c is not positive_data_acceptance or label not in UNSAID]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def answer(case: schemathesis.Case) -> None:
        answered = case.call(headers=ADMIN)
        late = answered.status_code == 504  # who gives hardly any time is told that it is over, which is nobody's failure
        case.validate_response(answered, checks=[c for c in checks if not late or c is not not_a_server_error], headers=ADMIN)

    answer()
