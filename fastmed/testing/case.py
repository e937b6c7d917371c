"""One call of an op beside its reference: the row of OP_CASES."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class OpCase:
    """One call of an op: make(device) gives its arguments, reference answers it in plain torch."""

    op: str
    name: str
    make: Callable[[str], tuple]
    reference: Callable
    keywords: dict = field(default_factory=dict)
    tolerance: float = 0.0

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"
