"""What Kubernetes' HorizontalPodAutoscaler does with a ScaledObject of docker/kubernetes: https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/

KEDA hands the values of its triggers to the HPA, which works out the number of pods. This is that rule, without a cluster.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.1
"""A value within a tenth of its target changes nothing (kube-controller-manager's default)."""
SYNC_S = 15.0
"""How often the number of pods is worked out (its default)."""


@dataclass(frozen=True)
class Trigger:
    """A Prometheus query; `whole`: its value is compared with the threshold (Value), else its share for each pod (AverageValue)."""

    query: str
    threshold: float
    whole: bool

    def pods(self, value: float, current: int, ready: int) -> int:
        """As many as this value asks for, of `current` pods of which so many are `ready`."""
        ratio = value / self.threshold if self.whole else value / (self.threshold * current)
        if abs(ratio - 1) <= TOLERANCE:
            return current
        return math.ceil(round(ratio * (ready if self.whole else current), 9))


@dataclass(frozen=True)
class Policy:
    """At most `value` pods, or per cent of them, within `period_s`."""

    percent: bool
    value: int
    period_s: float

    def limit(self, pods: int, up: bool) -> int:
        if self.percent:
            return math.ceil(pods * (1 + self.value / 100)) if up else math.floor(pods * (1 - self.value / 100))
        return pods + self.value if up else pods - self.value


@dataclass
class HorizontalScaler:
    """The HPA of one ScaledObject; `now` is any clock in seconds."""

    least: int
    most: int
    triggers: list[Trigger]
    up: list[Policy]
    down: list[Policy]
    window_s: float
    """How long a lower number must have been asked for before pods go."""
    asked: deque[tuple[float, int]] = field(default_factory=deque)
    changes: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def read(cls, spec: dict[str, Any], faster: float = 1.0) -> "HorizontalScaler":
        """From the `spec` of a ScaledObject; `faster` divides every time it waits.

        Raises AssertionError where it waits before it scales out, which this does not know.
        """
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        up, down = behavior["scaleUp"], behavior["scaleDown"]
        assert up["stabilizationWindowSeconds"] == 0
        triggers = [
            Trigger(t["metadata"]["query"], float(t["metadata"]["threshold"]), t.get("metricType") == "Value")
            for t in spec["triggers"]
        ]
        policies = [
            [Policy(p["type"] == "Percent", p["value"], p["periodSeconds"] / faster) for p in way["policies"]]
            for way in (up, down)
        ]
        window_s = down["stabilizationWindowSeconds"] / faster
        return cls(spec["minReplicaCount"], spec["maxReplicaCount"], triggers, *policies, window_s)

    def pods(self, now: float, current: int, ready: int, values: list[float]) -> int:
        """How many pods there should be, where there are `current`, so many of them ready, and the triggers have these values."""
        wanted = max(trigger.pods(value, current, ready) for trigger, value in zip(self.triggers, values, strict=True))
        wanted = min(max(wanted, self.least), self.most)
        self.asked.append((now, wanted))
        while self.asked[0][0] < now - self.window_s:
            self.asked.popleft()
        stable = max(n for _, n in self.asked)
        if wanted > current:
            chosen = min(wanted, max(p.limit(self._before(now, current, p), True) for p in self.up))
            chosen = max(chosen, current)
        elif stable < current:
            chosen = max(stable, min(p.limit(self._before(now, current, p), False) for p in self.down))
            chosen = min(chosen, current)
        else:
            chosen = current
        if chosen != current:
            self.changes.append((now, chosen - current))
        return chosen

    def _before(self, now: float, current: int, policy: Policy) -> int:
        """The number of pods when the policy's period began."""
        return current - sum(by for at, by in self.changes if at > now - policy.period_s)
