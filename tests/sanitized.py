"""pytest plugin of `make sanitize`: native modules are those in the folder FASTMED_SANITIZED."""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

from hypothesis import settings

EXAMPLES = 10
FOLDER = Path(os.environ["FASTMED_SANITIZED"]).resolve()
LIBRARY = FOLDER / "_C.so"
LIBRARIES = {"fastmed._C": LIBRARY, "fastmed._host": next(FOLDER.glob("_host.*.so"))}


class _Finder:
    """Answers before the finder of an editable install does."""

    @staticmethod
    def find_spec(name, path=None, target=None) -> ModuleSpec | None:
        return spec_from_file_location(name, LIBRARIES[name]) if name in LIBRARIES else None


sys.meta_path.insert(0, _Finder)


def pytest_sessionstart(session):
    import fastmed._host

    import fastmed.ops

    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert {each for each in mapped if each.endswith("/_C.so")} == {str(LIBRARY)}
    assert fastmed._host.__file__ == str(LIBRARIES["fastmed._host"])
    assert any("libasan" in each for each in mapped)


def pytest_collection_modifyitems(items):
    """Properties are tried on few examples: a sanitizer takes its time."""
    for item in items:
        own = getattr(item.obj, "_hypothesis_internal_use_settings", None)
        if own is not None:
            fewer = settings(own, max_examples=min(own.max_examples, EXAMPLES))
            item.obj._hypothesis_internal_use_settings = fewer
