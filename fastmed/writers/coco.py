"""coco.json: the findings of a run as COCO writes boxes, one image per slice that has some."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from fastmed.spec import Label
from fastmed.writers.dicom_uid import sane_uid
from fastmed.writers.slice_boxes import SliceBoxes
from fastmed.writers.tables import write_json


def write_coco(
    slices: Iterable[tuple[str, SliceBoxes]],
    labels: Iterable[Label],
    path: str | os.PathLike,
    *,
    description: str = "",
) -> None:
    """Writes coco.json.

    slices: (name of the scan, its slice with boxes) in the order of the file.
    labels: the categories; a category's id is the label's value.

    A bbox is (x, y, width, height) in pixels whose first corner is the image's: our pixels + 0.5.
    Annotations carry a score, and the number of the finding in its scan, for one finding lies on
    several slices.

    Raises FastmedError where the disk refuses.
    """
    categories = [{"id": label.value, "name": label.name} for label in labels]
    ids = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for series, at in slices:
        images.append(
            {
                "id": len(images) + 1,
                "file_name": at.file_name,
                "width": at.width,
                "height": at.height,
                "series": series,
                "slice": at.slice,
                "sop_instance_uid": sane_uid(at.sop_instance_uid),
            }
        )
        for box in at.boxes:
            x1, y1, x2, y2 = box.box_px
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": ids[box.label],
                    "bbox": [x1 + 0.5, y1 + 0.5, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": box.score,
                    "finding": box.finding,
                }
            )
    info = {"description": description}
    write_json(
        {"info": info, "images": images, "annotations": annotations, "categories": categories},
        path,
        durable=True,
    )
