"""fastmed: CT imaging from archive to answer. For research use; not a medical device."""

__version__ = "0.1.0"

_FUNCTIONS = {
    "read": "fastmed.readers.index",
    "index": "fastmed.readers.index",
    "load": "fastmed.inference.case",
    "infer": "fastmed.inference.archive",
    "export": "fastmed.inference.export",
    "certify": "fastmed.inference.certify",
    "train": "fastmed.training.train",
    "evaluate": "fastmed.inference.evaluate",
}

__all__ = ["certify", "evaluate", "export", "index", "infer", "load", "read", "train"]


def __getattr__(name: str):
    """Imports a public function on first use, so that `import fastmed.ops` needs torch alone."""
    if name in _FUNCTIONS:
        from importlib import import_module

        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'fastmed' has no attribute {name!r}")
