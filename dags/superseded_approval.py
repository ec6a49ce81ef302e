"""A person's approval that ends by itself when what is asked about was superseded meanwhile."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import timezone
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

from dags.approval import APPROVAL_DAYS
from dags.credentials import read_connections

LOOKS_EVERY = timedelta(minutes=2)
"""How often the registry is asked for a newer candidate: a process of some two seconds each time."""
RETRIES = 10
"""A restart of Airflow while it looks kills that process, and the task asks again."""


class SupersededApproval(ApprovalOperator):
    """Asks a person until what is asked about is superseded; waits at most `response_timeout`, without a process.

    One run at a time promotes or rebuilds, so nothing newer can be proposed before this task ends. It wakes up now and then: when
    what it asks about was superseded, it ends like a rejection, with a note on the run. An answer that came first stands, and so
    does the question across restarts of Airflow: it lies in Airflow's database.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"retries": RETRIES})

    def execute(self, context: Any) -> Any:
        try:
            return super().execute(context)
        except TaskAwaitingInput as asked:
            until = timezone.utcnow() + (self.response_timeout or timedelta(days=APPROVAL_DAYS))
            raise self._wait(asked.method_name, until.isoformat()) from None

    def execute_complete(self, context: Any, event: dict[str, Any], until: str = "") -> Any:
        """Takes the answer; without one, ends when the version was superseded, waits on, or fails after the last deadline."""
        if event.get("error_type") == "timeout" and until:
            if reason := self._superseded(context):
                self.log.info("%s", reason)
                context["ti"].xcom_push("return_value", {"summary": reason, "note": reason})  # `skip` ends the task
                self.skip(ti=context["ti"], tasks=[t for t in context["task"].get_direct_relatives() if not t.is_teardown])
                return None
            if timezone.utcnow() < timezone.parse(until):
                raise self._wait("execute_complete", until)
            raise AirflowFailException("nobody answered in time; trigger this DAG again to be asked anew")
        return super().execute_complete(context, event)

    def superseded(self, context: Any) -> str:
        """Why there is nothing left to ask, as one sentence; "" while there is."""
        raise NotImplementedError

    def _superseded(self, context: Any) -> str:
        try:
            read_connections()
            return self.superseded(context)
        except Exception as error:  # the registry may be away for a moment, which is no reason to withdraw the question
            self.log.warning("MLflow could not be asked for something newer: %s", type(error).__name__)
            return ""

    @staticmethod
    def _wait(method: str, until: str) -> TaskAwaitingInput:
        left = timezone.parse(until) - timezone.utcnow()
        return TaskAwaitingInput(method_name=method, kwargs={"until": until}, timeout=min(left, LOOKS_EVERY))


class CandidateApproval(SupersededApproval):
    """Asks about the version that `choose_slot` returned, until a newer candidate replaces it; about one named by a person, on."""

    def superseded(self, context: Any) -> str:
        from tasks.pipelines import promote_index

        if context["params"]["version"]:
            return ""
        return promote_index.replaced_while_waiting(context["ti"].xcom_pull(task_ids="choose_slot")["version"])


class EmbeddingApproval(SupersededApproval):
    """Asks about embedding with the encoder that `choose_encoder` returned, while that is the champion."""

    def superseded(self, context: Any) -> str:
        from tasks.pipelines import plan_reembedding

        return plan_reembedding.replaced_while_waiting(context["ti"].xcom_pull(task_ids="choose_encoder")["version"])
