"""How alike two label maps of one scan are: infer_agreement.py LABELS LABELS

Prints one line of JSON: share of equal voxels and Dice of the foreground. Axes are brought into
the patient's order first, because two programs may store the slices in opposite order.
"""

from __future__ import annotations

import json
import sys

import nibabel
import numpy as np


def main() -> None:
    images = [nibabel.as_closest_canonical(nibabel.load(path)) for path in sys.argv[1:]]
    ours, theirs = (np.asarray(image.dataobj).astype(np.uint8) for image in images)
    apart_mm = np.abs(images[0].affine - images[1].affine).max()
    if ours.shape != theirs.shape or apart_mm > 1e-3:
        sys.exit(f"the label maps lie on different grids: {ours.shape}, {theirs.shape}")
    both = np.count_nonzero((ours > 0) & (ours == theirs))
    sizes = np.count_nonzero(ours) + np.count_nonzero(theirs)
    facts = {
        "equal": float(np.mean(ours == theirs)),
        "dice": 2 * both / sizes if sizes else float("nan"),
        "foreground": np.count_nonzero(ours) / ours.size,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
