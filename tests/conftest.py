"""What every test may ask for."""

import os
from pathlib import Path

import pytest

_PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def scans() -> Path:
    """The folder of real scans: FASTMED_SCANS, else ../shared/data beside the project."""
    folder = Path(os.environ.get("FASTMED_SCANS", _PROJECT.parent / "shared" / "data"))
    if not (folder / "ct-abdomen-dicom").is_dir():
        pytest.skip(f"no real scans in {folder}; FASTMED_SCANS names another folder")
    return folder
