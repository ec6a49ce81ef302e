"""Authorisation of the board through Airflow's auth manager, and CSRF protection of its actions."""

from collections.abc import Callable
from typing import Annotated

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import AssetDetails, DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel
from fastapi import Depends, Header, HTTPException, Request

ACTIONS = {"promote": "promote_index", "rollback": "rollback_index", "rebuild": "rebuild_index"}
"""The DAG that each button of the board triggers."""
MEANT = "release-board"
"""The value of the header X-Vitrine: another site's form cannot send it, and another site's script may not."""


def require_reader(user: GetUserDep) -> BaseUser:
    """Dependency: requires permission to see runs of `promote_index`. 401 without a valid token, 403 without permission."""
    if not is_allowed(user, "GET", ACTIONS["promote"]):
        raise HTTPException(403, "the release board is for those who may see the DAG promote_index; ask an admin of Airflow")
    return user


Reader = Annotated[BaseUser, Depends(require_reader)]


def require_operator(action: str) -> Callable[[BaseUser], BaseUser]:
    """Dependency factory: requires permission to trigger the action's DAG and to publish assets. 403 names what is missing."""

    def check(user: Reader) -> BaseUser:
        if not can_act(user, action):
            raise HTTPException(
                403, f"{action} is for operators: it needs the permission to trigger {ACTIONS[action]} and to publish assets"
            )
        return user

    return check


def can_act(user: BaseUser, action: str) -> bool:
    """Whether a user may perform an action. Permission to publish assets separates operators from users in every auth manager."""
    return is_allowed(user, "POST", ACTIONS[action]) and get_auth_manager().is_authorized_asset(
        method="POST", user=user, details=AssetDetails()
    )


def is_allowed(user: BaseUser, method: str, dag_id: str) -> bool:
    """Whether a user may read ("GET") or trigger ("POST") runs of a DAG."""
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    return get_auth_manager().is_authorized_dag(method=method, access_entity=DagAccessEntity.RUN, details=details, user=user)  # type: ignore[arg-type]


def refuse_cross_site(
    request: Request,
    x_vitrine: Annotated[str, Header()] = "",
    sec_fetch_site: Annotated[str, Header()] = "same-origin",
) -> None:
    """CSRF protection: refuses browser requests that another site initiated. Bearer tokens are exempt: browsers never add them."""
    if request.headers.get("authorization", "").lower().startswith("bearer "):
        return
    if x_vitrine != MEANT or sec_fetch_site != "same-origin":
        raise HTTPException(403, "this did not come from the release board: open the board in Airflow and press the button there")


def token_of(request: Request) -> str:
    """The bearer token of this request, to call Airflow's API with the user's own permissions."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else request.cookies.get(COOKIE_NAME_JWT_TOKEN, "")
