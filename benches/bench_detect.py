"""A whole scan through nodule-ssd3d, by stage, beside MONAI's detector without its network.

python benches/bench_detect.py [--quick] [--runs N] [--model BUNDLE]

fastmed: `Model(volume)` of a scan of 512 x 512 x 300 voxels, on the fastest engine; the network has
fresh weights, which find nothing: so that all that follows it has something to do, what it says is
replaced, tile by tile, by numbers of the same shape in which one default box in fifty is a finding.
MONAI: what its nodule detector does with a raw scan: Orientationd, Spacingd (in float64, its
default; float32 is shown too) and ScaleIntensityRanged, then RetinaNetDetector with its
sliding-window inferer on a grid of the same size, with the same tiles, default boxes, thresholds
and numbers; between its tiles the same engine runs, so that caches are as cold, and its seconds are
not counted. Left out in MONAI's favour: flipping the scan to its RAS order, and what brings its
boxes to mm.
Both sides are timed in turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from monai.transforms import Compose, Orientationd, ScaleIntensityRanged, Spacingd
from torch import Tensor, nn

from fastmed import bundle as bundles
from fastmed import exporter, models
from fastmed.boxes import boxes_per_level, diameters_in_voxels
from fastmed.geometry import Geometry
from fastmed.inference.case import Model, StageClock, load
from fastmed.preprocessing import to_grid
from fastmed.spec import Spec
from fastmed.tasks.candidates import tiles_of
from fastmed.training.recipe import read_recipe
from fastmed.volume import Volume

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "bench-detect"
CORES = 2
SHAPE_ZYX, SPACING_MM_ZYX = (300, 512, 512), (1.0, 0.8, 0.8)
QUICK_ZYX = (100, 200, 200)
FINDING_LOGIT, SPREAD = -6.0, 1.5  # 2 % of such logits are above a score of 0.05


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(CORES)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    model = load(arguments.model or _fresh_bundle())
    spec = model.spec
    volume = _scan(QUICK_ZYX if arguments.quick else SHAPE_ZYX)
    image, grid = to_grid(volume, spec)
    tiles = tiles_of(grid.shape_zyx, spec)
    raw = _busy(len(tiles.corners), tiles.size_zyx, spec)
    ours = Fastmed(model, volume, raw)
    theirs = Monai(volume, image, raw, tiles.size_zyx, model)
    ours.warm_up(torch.zeros(1, 1, *tiles.size_zyx))
    seconds: dict[str, list[dict[str, float]]] = {"fastmed": [], "MONAI": []}
    for _ in range(arguments.runs):
        seconds["fastmed"].append(ours.run())
        seconds["MONAI"].append(theirs.run())
    shape = " x ".join(map(str, volume.voxels.shape))
    print(f"{shape} voxels, grid {grid.shape_zyx}, {len(tiles.corners)} tiles of {tiles.size_zyx},")
    print(f"{raw.shape[1]} default boxes each; {model.engine_choice}; {ours.found} boxes found\n")
    return _report(seconds)


class Fastmed:
    """`Model(volume)`, whose network's answers are replaced."""

    def __init__(self, model: Model, volume: Volume, raw: Tensor):
        self._engine = Replaced(model.engine, raw)
        self._model, self._volume = replace(model, engine=self._engine, batch=1), volume
        self.found = 0

    def warm_up(self, tiles: Tensor) -> None:
        self._engine(tiles)

    def run(self) -> dict[str, float]:
        self._engine.tile = 0
        clock = StageClock()
        self.found = len(self._model(self._volume, clock=clock).boxes)
        return clock.seconds


class Replaced:
    """An engine that runs its network and says something else."""

    def __init__(self, engine, raw: Tensor):
        self.name, self.device = engine.name, engine.device
        self._engine, self._raw, self.tile = engine, raw, 0

    def __call__(self, tiles: Tensor) -> Tensor:
        answer = self._engine(tiles)
        answer.copy_(self._raw[self.tile : self.tile + 1])  # as warm as the network's own
        self.tile += 1
        return answer


class Monai:
    """Its transforms and RetinaNetDetector, without the network's seconds."""

    def __init__(self, volume: Volume, image: Tensor, raw: Tensor, tile_zyx, model: Model):
        from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
        from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

        spec, detection = model.spec, model.spec.detection
        first = detection.strides[0]
        cubes = diameters_in_voxels(detection.diameters_mm, spec.spacing_mm_zyx)
        # Its anchors are those of the first level, grown by the stride: as many, if not as large.
        anchors = AnchorGeneratorWithAnchorShape(
            feature_map_scales=[stride / first for stride in detection.strides],
            base_anchor_shapes=[list(cube) for cube in cubes[0]],
        )
        self._network = MapsOf(raw, tile_zyx, spec, model.engine)
        self._detector = RetinaNetDetector(
            self._network, anchors, size_divisible=max(detection.strides)
        ).eval()
        self._detector.set_sliding_window_inferer(
            roi_size=tile_zyx, overlap=spec.overlap, sw_batch_size=1, mode="constant", device="cpu"
        )
        self._detector.set_box_selector_parameters(
            score_thresh=detection.score_threshold,
            topk_candidates_per_level=1000,
            nms_thresh=detection.iou_threshold,
            detections_per_img=detection.max_boxes,
        )
        low, high = spec.window_hu
        self._volume, self._image = volume, image
        self._prepare = {
            name: Compose(
                [
                    Orientationd("image", axcodes="LPS", labels=None),
                    Spacingd(
                        "image",
                        pixdim=spec.spacing_mm_zyx[::-1],
                        mode="bilinear",
                        padding_mode="border",
                        dtype=dtype,
                    ),
                    ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
                ]
            )
            for name, dtype in (("resample", torch.float64), ("resample32", torch.float32))
        }

    def run(self) -> dict[str, float]:
        seconds = {name: self._resample(prepare) for name, prepare in self._prepare.items()}
        return seconds | {"detector": self._detect()}

    def _resample(self, prepare: Compose) -> float:
        """Seconds from the scan, as MONAI's readers give it, to the grid."""
        from monai.data import MetaTensor

        voxels = torch.from_numpy(self._volume.voxels).permute(2, 1, 0)[None]
        voxels = voxels.to(torch.float32, memory_format=torch.contiguous_format)
        scan = {"image": MetaTensor(voxels, affine=self._volume.geometry.to_ras_xyz())}
        started = time.perf_counter()
        prepared = prepare(scan)["image"]
        seconds = time.perf_counter() - started
        size = tuple(prepared.shape[:0:-1])
        assert all(abs(a - b) <= 1 for a, b in zip(size, self._image.shape, strict=True)), size
        return seconds

    def _detect(self) -> float:
        self._network.tile, self._network.seconds = 0, 0.0
        self._detector.anchors = None  # those of the last scan: the next has another size
        started = time.perf_counter()
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._detector(self._image[None, None], use_inferer=True)
        return time.perf_counter() - started - self._network.seconds


class MapsOf(nn.Module):
    """Runs an engine and says the same numbers as maps [1, boxes * values, d, h, w] per level."""

    spatial_dims, num_classes, cls_key, box_reg_key = 3, 1, "classification", "box_regression"

    def __init__(self, raw: Tensor, tile_zyx, spec: Spec, engine):
        super().__init__()
        self._engine = engine
        strides = spec.detection.strides
        self.num_anchors = len(spec.detection.diameters_mm[0])
        counts = boxes_per_level(tile_zyx, strides, self.num_anchors)
        self._sizes = [[-(-n // stride) for n in tile_zyx] for stride in strides]
        scores = (raw[..., 7:] - raw[..., 6:7]).split(counts, dim=1)
        codes = raw[..., :6].split(counts, dim=1)
        self._scores = [self._map(*level) for level in zip(scores, self._sizes, strict=True)]
        self._codes = [self._map(*level) for level in zip(codes, self._sizes, strict=True)]
        self._said = {
            self.cls_key: [torch.empty_like(level[:1]) for level in self._scores],
            self.box_reg_key: [torch.empty_like(level[:1]) for level in self._codes],
        }
        self.tile, self.seconds = 0, 0.0

    def _map(self, level: Tensor, size: list[int]) -> Tensor:
        maps = level.reshape(len(level), *size, -1)
        return maps.permute(0, 4, 1, 2, 3).contiguous()

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        started = time.perf_counter()
        self._engine(image)
        places = len(self._scores[0])
        one = slice(self.tile % places, self.tile % places + 1)
        # Copied, as warm as the network's own, and anew: the inferer weighs it in place.
        for key, levels in ((self.cls_key, self._scores), (self.box_reg_key, self._codes)):
            for slot, level in zip(self._said[key], levels, strict=True):
                slot.copy_(level[one])
        self.tile += 1
        self.seconds += time.perf_counter() - started
        return {key: list(levels) for key, levels in self._said.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a scan of 200 x 200 x 100 voxels")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--model", type=Path, help="a bundle; default: nodule-ssd3d, fresh weights")
    return parser.parse_args()


def _fresh_bundle() -> Path:
    # One look at each tile: mirrored ones add to the network's time alone, on both sides.
    spec = replace(read_recipe("nodule-ssd3d").spec, mirror_zyx=(False, False, False))
    torch.manual_seed(0)
    bundles.write(WORK, spec, models.build(spec.network.name, **spec.network.arguments))
    exporter.export(WORK)
    return WORK


def _scan(shape_zyx) -> Volume:
    hu = np.random.default_rng(0).integers(-1000, 400, shape_zyx, dtype=np.int16)
    return Volume(hu, Geometry.from_spacing(shape_zyx, SPACING_MM_ZYX), name="scan")


def _busy(tiles: int, tile_zyx, spec: Spec) -> Tensor:
    """What a network in the midst of its training might say: [T, N, 6 + classes]."""
    detection = spec.detection
    boxes = sum(boxes_per_level(tile_zyx, detection.strides, len(detection.diameters_mm[0])))
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(tiles, boxes, 6 + spec.num_classes, generator=generator)
    raw[..., :6] *= 0.5
    raw[..., 6] = 0
    raw[..., 7:] = raw[..., 7:] * SPREAD + FINDING_LOGIT
    return raw


def _report(seconds: dict[str, list[dict[str, float]]]) -> int:
    ours, theirs = (
        {stage: median(run[stage] for run in runs) for stage in runs[0]}
        for runs in (seconds["fastmed"], seconds["MONAI"])
    )
    detector = ours["stitch"] + ours["decode"]
    own = ours["resample"] + detector
    other = theirs["detector"] + theirs["resample"]
    in_float32 = theirs["detector"] + theirs["resample32"]
    ratios = {"outside_network": other / own, "detector": theirs["detector"] / detector}
    print("seconds                     fastmed    MONAI")
    print(f"orient, resample, window   {ours['resample']:8.3f} {theirs['resample']:8.3f}")
    print(f"network                    {ours['network']:8.3f}")
    print(f"cut and gather the tiles   {ours['stitch']:8.3f}")
    print(f"decode, merge, NMS, mm     {ours['decode']:8.3f}")
    print(
        f"detector but its network   {detector:8.3f} {theirs['detector']:8.3f}"
        f"  {ratios['detector']:5.1f}x"
    )
    print(f"all but the network        {own:8.3f} {other:8.3f}  {ratios['outside_network']:5.1f}x")
    print(f"with Spacingd in float32   {own:8.3f} {in_float32:8.3f}  {in_float32 / own:5.1f}x")
    share = 1 - ours["network"] / sum(ours.values())
    print(f"all but the network: {share:.1%} of the whole")
    gates = tomllib.loads((HERE / "detect_gates.toml").read_text(encoding="utf-8"))
    fallen = [
        f"{name}: MONAI / fastmed is {ratio:.1f}, the gate is {gates[name]:g}"
        for name, ratio in ratios.items()
        if not ratio >= gates[name]
    ]
    most = gates["share_outside_network"]
    if not share <= most:
        fallen.append(f"{share:.1%} of the seconds are not the network's, the gate is {most:.0%}")
    for sentence in fallen:
        print(f"bench_detect: {sentence}", file=sys.stderr)
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())
