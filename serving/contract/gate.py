"""A gate of an index version: a named check, as its manifest records it."""

from serving.contract.files import FrozenModel


class Gate(FrozenModel):
    """A named check: the measured value, the threshold, and whether it passed."""

    name: str
    value: float
    threshold: float
    passed: bool
    reason: str

    @classmethod
    def at_least(cls, name: str, value: float, threshold: float, what: str, shown: str = "{:.4g}") -> "Gate":
        """Passes when the value reaches the threshold. `shown` formats both for the sentence, such as "{:.1%}" or "{:.0f} ms"."""
        limit = f"at least {shown.format(threshold)} is required"
        return cls.judged(name, value, threshold, value >= threshold, f"{what}: {shown.format(value)} ({limit})")

    @classmethod
    def at_most(cls, name: str, value: float, threshold: float, what: str, shown: str = "{:.4g}") -> "Gate":
        """Passes when the value does not exceed the threshold. `shown`: see `at_least`."""
        limit = f"at most {shown.format(threshold)} is allowed"
        return cls.judged(name, value, threshold, value <= threshold, f"{what}: {shown.format(value)} ({limit})")

    @classmethod
    def judged(cls, name: str, value: float, threshold: float, passed: bool, reason: str) -> "Gate":
        """A check decided by other rules than a bound; `reason` is one sentence with the value and the rule."""
        return cls(name=name, value=float(value), threshold=float(threshold), passed=bool(passed), reason=reason)
