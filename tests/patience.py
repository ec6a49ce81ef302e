"""Limits of time that no test is about, so long that a machine which stands still for a while does not meet them."""

from dataclasses import fields

import pytest

from serving.cluster import fleet
from serving.settings import ServingSettings

SETTINGS = {"deadline_s": 60.0, "shard_timeout_s": 30.0}
PROBE_S = 30.0


def wait_patiently(patch: pytest.MonkeyPatch) -> None:
    """For replicas and gateways of this process. A test that is about such a limit gives its own."""
    defaults = tuple(SETTINGS.get(spec.name, spec.default) for spec in fields(ServingSettings))
    patch.setattr(ServingSettings.__init__, "__defaults__", defaults)
    patch.setattr(fleet, "PROBE_TIMEOUT_S", PROBE_S)
