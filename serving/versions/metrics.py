"""Slot metrics: the live version, the state of each slot, flips, and retired versions still in memory."""

from typing import Any

from serving.telemetry.metrics import Metrics
from serving.versions.slots import STATES, Slots


class SlotMetrics:
    """Gauges read from `slots` at every scrape."""

    def __init__(self, metrics: Metrics, slots: Slots[Any]) -> None:
        self.slots = slots
        self.live = metrics.gauge("vitrine_live_version", "1 for the index version that serves", ["version", "slot"])
        self.state = metrics.gauge("vitrine_slot_state", "1 for the state a slot is in", ["slot", "state"])
        self.flips = metrics.gauge("vitrine_flips", "Times another version went live since the start")
        self.failures = metrics.gauge("vitrine_load_failures", "Versions that could not be loaded since the start")
        self.registry_ok = metrics.gauge("vitrine_registry_ok", "Whether the registry answered the last time it was asked")
        self.draining = metrics.gauge("vitrine_draining_versions", "Versions given up whose last request has not ended")
        self.freed = metrics.gauge("vitrine_freed_versions", "Versions whose memory was given back since the start")
        metrics.before_scrape(self.refresh)

    def refresh(self) -> None:
        slots = self.slots
        self.live.clear()
        if slots.live is not None:
            self.live.labels(slots.live.version, slots.live_slot).set(1)
        for name, slot in slots.slots.items():
            for state in STATES:
                self.state.labels(name, state).set(int(slot.state == state))
        self.flips.set(slots.flips)
        self.failures.set(slots.failures)
        self.registry_ok.set(int(not slots.error))
        self.draining.set(len(slots.draining()))
        self.freed.set(slots.freed)
