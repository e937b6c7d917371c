"""labels.png: the label map of a grey image, in the grey values that the model's labels name."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image

from fastmed.findings import Findings
from fastmed.writers.atomic import write_atomically


def write_label_picture(findings: Findings, path: str | os.PathLike) -> None:
    """Writes labels.png: one pixel per pixel of the image, 0 where nothing was found.

    A label has its grey value (255 in a black and white mask) where its spec names one, else its
    own value. 8 bits, or 16 where a value is above 255.

    Raises FastmedError where the disk refuses, ValueError for labels of more than one slice.
    """
    if findings.labels.shape[0] != 1:
        raise ValueError(f"labels {findings.labels.shape}: expected one slice")
    greys = [0, *(c.value if c.grey is None else c.grey for c in findings.classes)]
    table = np.array(greys, dtype=np.uint8 if max(greys) <= 255 else np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(table[findings.labels[0]]).save(buffer, "PNG", compress_level=4)
    write_atomically(path, [buffer.getvalue()])
