"""Class maps: which classes of a data set count as which label, as `--classes` says it."""

from __future__ import annotations

from collections.abc import Collection

from fastmed.errors import UsageError

ALL = "all"


def class_map(text: str, known: Collection[str]) -> dict[str, str]:
    """Reads "nodule=all" or "adenocarcinoma=A,other=B+E+G" as label by class.

    known: the data set's classes: what `all` stands for.

    Raises UsageError for a text that is none, a label named twice, a class that the data set does
    not have, and one that stands for two labels.
    """
    labels: dict[str, str] = {}
    named: set[str] = set()
    for item in text.split(","):
        label, equals, classes = (part.strip() for part in item.partition("="))
        names = [name.strip() for name in classes.split("+")]
        if not (equals and label and all(names)):
            raise UsageError(
                f"--classes {item.strip()!r}: expected LABEL=CLASS, LABEL=CLASS+CLASS or LABEL=all"
            )
        if label in named:
            raise UsageError(f"--classes: {label} is named twice")
        named.add(label)
        for name in known if names == [ALL] else names:
            if name not in known:
                raise UsageError(
                    f"--classes: {name!r} is no class; known are {', '.join(sorted(known))}"
                )
            if name in labels:
                raise UsageError(f"--classes: class {name} stands for two labels")
            labels[name] = label
    return labels
