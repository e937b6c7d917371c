"""A network that MONAI defined and exported runs here with a bundle.toml written by hand."""

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="needs `pip install -c constraints.txt --no-deps monai`")
pytest.importorskip("onnxruntime")

from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

import fastmed

SPACING_XYZ, ROI_XYZ = (2.0, 2.0, 3.0), (48, 32, 32)
WINDOW_HU = (-200.0, 300.0)
WRITTEN_BY_HAND = f"""
format = 1
name = "monai-unet"
task = "segmentation"
[grid]
axes = "RAS"
spacing_mm_zyx = {[*SPACING_XYZ]}
window_hu = {[*WINDOW_HU]}
[tiles]
size_zyx = {[*ROI_XYZ]}
overlap = 0.25
size_multiple = 8
[[labels]]
value = 1
name = "bright"
[[labels]]
value = 2
name = "right edge"
"""


def scan(folder, spacing_xyz):
    """A ball and, to its right and front, a rod in soft tissue, slices upside down in the file."""
    size = [round(mm / step) for mm, step in zip((168, 112, 96), spacing_xyz, strict=True)]
    x, y, z = np.meshgrid(
        *(np.arange(n) * step for n, step in zip(size, spacing_xyz, strict=True)), indexing="ij"
    )
    hu = np.full(size, -1000.0)
    hu[6:-6, 6:-6, 3:-3] = 40
    hu[(z - 55) ** 2 + (y - 64) ** 2 + (x - 90) ** 2 < 22**2] = 180
    hu[((y - 40) ** 2 + (x - 35) ** 2 < 11**2) & (z > 20) & (z < 76)] = 180
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    affine = np.diag([*(-step for step in spacing_xyz), 1.0])
    affine[:3, 3] = (60.0, 58.0, 40.0)
    path = folder / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu.astype(np.int16), affine), path)
    return path


def trained_on(image):
    """A small U-Net that has learnt what is bright, and on which side it ends to the right.

    It tells the axes and their directions apart: turned or flipped, a scan gets other labels.
    """
    torch.manual_seed(0)
    network = UNet(3, 1, 3, channels=(8, 16), strides=(2,), norm="batch")
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    bright = image[0, 0] > 0.66
    truth = bright.long() + (bright & ~bright.roll(-4, 0)).long()
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(image), truth[None]).backward()
        optimiser.step()
    return network.eval()


# On a lattice like the network's own, of a size at which both lay the same tiles (MONAI gives their
# edges larger weights), and on one that is resampled there and back: MONAI lays its grid from the
# first voxel's centre, this package over the scan's middle, so that surfaces fall otherwise.
LATTICES = {"the network's": (SPACING_XYZ, 0.999, 0.97), "finer": ((1.6, 1.6, 2.5), 0.995, 0.92)}


@pytest.fixture(scope="module", params=LATTICES.values(), ids=LATTICES.keys())
def both(tmp_path_factory, request):
    """The labels of MONAI's own inference, [x, y, z] of the file, and the bundle's folder."""
    folder = tmp_path_factory.mktemp("monai")
    spacing_xyz, *least = request.param
    path = scan(folder, spacing_xyz)
    low, high = WINDOW_HU
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=SPACING_XYZ, mode="bilinear"),
            ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        ]
    )
    data = before({"image": path})
    network = trained_on(data["image"][None, :, 8:72, 4:52, 4:28].as_tensor())
    with torch.inference_mode():
        data["pred"] = sliding_window_inference(
            data["image"][None], ROI_XYZ, 1, network, overlap=0.25, mode="gaussian"
        )[0]
    after = Invertd("pred", before, orig_keys="image", nearest_interp=False)
    labels = after(data)["pred"].argmax(0).numpy()
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, *ROI_XYZ),),
        folder / "model.onnx",
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    (folder / "bundle.toml").write_text(WRITTEN_BY_HAND)
    return labels, folder, path, least


@pytest.mark.parametrize("engine", ["ort", "ov"])
def test_labels_are_those_of_monais_own_inference(both, engine):
    pytest.importorskip({"ort": "onnxruntime", "ov": "openvino"}[engine])
    labels, folder, path, (least_equal, least_dice) = both
    (volume,) = fastmed.read(path)
    found = fastmed.load(folder, engine=engine, device="cpu")(volume).labels
    in_file = found.T  # a file's x, y, z are a volume's columns, rows and slices
    assert in_file.shape == labels.shape
    assert np.mean(in_file == labels) >= least_equal
    for label in (1, 2):
        ours, theirs = in_file == label, labels == label
        assert theirs.sum() > 500
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > least_dice


@pytest.mark.parametrize("axes", ["SPL", "LAS", "ARS"])
def test_another_order_or_direction_of_the_axes_gives_other_labels(both, axes, tmp_path):
    labels, folder, path, _ = both
    text = (folder / "bundle.toml").read_text().replace('"RAS"', f'"{axes}"')
    (tmp_path / "bundle.toml").write_text(text)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (volume,) = fastmed.read(path)
    found = fastmed.load(tmp_path, engine="ort", device="cpu")(volume).labels.T
    ours, theirs = found == 2, labels == 2
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) < 0.7
