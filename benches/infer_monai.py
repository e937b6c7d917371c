"""The same work with MONAI, timed by stage: infer_monai.py SCAN BUNDLE OUTPUT SPACING_DTYPE

It does what MONAI's bundles do, and what is faster for it: its fastest DICOM reader, patient axes
in the order x, y, z (in z, y, x its argmax takes four times as long), the network in
channels_last_3d, labels stored as uint8. The network is fastmed's own, with its kernels transposed
to that order. Prints one line of JSON: the seconds of each stage and the label map's path.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)

from fastmed import bundle as bundles

KEY = "image"


def network_xyz(bundle: bundles.Bundle) -> torch.nn.Module:
    """The bundle's network for input [B, C, x, y, z]: each kernel's axes in reverse order."""
    network = bundle.network()
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.permute(0, 1, 4, 3, 2)
    return network.to(memory_format=torch.channels_last_3d)


class Scan:
    """One scan through MONAI's transforms; the seconds of its stages are added to `seconds`."""

    def __init__(self, spec, network, output: str, spacing_dtype: str, seconds: dict[str, float]):
        self._spec, self._network, self._seconds = spec, network, seconds
        low, high = spec.window_hu
        self._before = {
            "read": (LoadImaged(KEY, reader="PydicomReader"), EnsureChannelFirstd(KEY)),
            "resample": (
                Orientationd(KEY, axcodes="LPS", labels=None),
                Spacingd(
                    KEY,
                    pixdim=spec.spacing_mm_zyx[::-1],
                    mode="bilinear",
                    dtype=getattr(torch, spacing_dtype),
                ),
                ScaleIntensityRanged(KEY, low, high, 0.0, 1.0, clip=True),
            ),
        }
        every = [transform for transforms in self._before.values() for transform in transforms]
        self._after = {
            "invert": Invertd("pred", Compose(every), orig_keys=KEY, nearest_interp=False),
            "argmax": AsDiscreted("pred", argmax=True),
            "write": SaveImaged(
                "pred",
                output_dir=output,
                output_postfix="labels",
                output_ext=".nii.gz",
                output_dtype="uint8",
                separate_folder=False,
                print_log=False,
            ),
        }

    @contextmanager
    def _clock(self, stage: str):
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self._seconds[stage] = self._seconds.get(stage, 0.0) + spent

    def _forward(self, tiles: torch.Tensor) -> torch.Tensor:
        with self._clock("network"):
            return self._network(tiles.to(memory_format=torch.channels_last_3d)).contiguous()

    def run(self, scan: str) -> None:
        """Reads the scan, runs the network over it, and writes its label map."""
        data = {KEY: scan}
        for stage, transforms in self._before.items():
            with self._clock(stage):
                for transform in transforms:
                    data = transform(data)
        before = self._seconds.get("network", 0.0)
        started = time.perf_counter()
        data["pred"] = sliding_window_inference(
            data[KEY][None],
            roi_size=_tile(data[KEY].shape[1:], self._spec),
            sw_batch_size=1,
            predictor=self._forward,
            overlap=self._spec.overlap,
            mode="gaussian",
            padding_mode="replicate",
        )[0]
        beside = time.perf_counter() - started - (self._seconds["network"] - before)
        self._seconds["stitch"] = self._seconds.get("stitch", 0.0) + beside
        for stage, transform in self._after.items():
            with self._clock(stage):
                data = transform(data)


def main() -> None:
    warnings.simplefilter("ignore")
    scan, folder, output, spacing_dtype = sys.argv[1:]
    started = time.perf_counter()
    bundle = bundles.read(folder)
    network = network_xyz(bundle)
    seconds = {"load": time.perf_counter() - started}
    with torch.inference_mode():
        Scan(bundle.spec, network, output, spacing_dtype, seconds).run(scan)
    seconds["decode"] = seconds["invert"] + seconds["argmax"]
    (labels,) = Path(output).glob("*.nii.gz")
    print(json.dumps({"seconds": seconds, "engine": "torch", "labels": str(labels)}))


def _tile(shape_xyz, spec) -> list[int]:
    """fastmed's tile: an axis that is shorter than the tile is padded to `size_multiple` only."""
    multiple = spec.size_multiple
    return [
        full if n >= full else -(-n // multiple) * multiple
        for n, full in zip(shape_xyz, spec.tile_zyx[::-1], strict=True)
    ]


if __name__ == "__main__":
    main()
