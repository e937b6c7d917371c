"""One call of an op beside its reference: the row of OP_CASES."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class OpCase:
    """One call of an op: make(device) gives its arguments, reference answers it in plain torch.

    A large case is of a size that users have: benches time it, tests leave it to `long` ones.
    note: what its input is made of, where the table should say so.
    """

    op: str
    name: str
    make: Callable[[str], tuple]
    reference: Callable
    keywords: dict = field(default_factory=dict)
    tolerance: float = 0.0
    large: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"
