"""SSD300 with VGG16: boxes in 2D slices, weight by weight and call by call torchvision's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmed.boxes import SSD300_PER_LEVEL, WEIGHTS_2D, decode, default_boxes_ssd300
from fastmed.losses import DetectionLoss, Targets
from fastmed.models.blocks import check_counts
from fastmed.ops import batched_nms

SIZE = 300
# Of ImageNet's red, green and blue, 0 to 1; what VGG16 was trained on reached from 0 to 255.
_MEAN = (0.48235, 0.45882, 0.40784)
_STD = 1 / 255
# Per level: channels of the feature, default boxes at each of its places.
_LEVELS = ((512, 4), (1024, 6), (512, 6), (256, 6), (256, 4), (256, 4))
# A continuous coordinate in torchvision's pixel space is ours + 0.5.
_TO_PIXELS = 0.5


class SSD300(nn.Module):
    """SSD300 with VGG16, with the parameters, the call and the results of torchvision's.

    in_channels: 3 as torchvision has it, the grey slice repeated or three neighbouring slices; 1;
        or any other count of neighbouring slices. Its weights load with strict=True where it is 3.
    num_classes: with background, which is class 0.
    score_threshold, nms_threshold, candidates, detections: what is left of the 8732 boxes: those
        scored above the threshold, of each class at most so many candidates, and after suppression
        within each class at most so many detections per image; torchvision's score_thresh,
        nms_thresh, topk_candidates and detections_per_img.

    Two calls:

    network(x), x [B, in_channels, 300, 300] float in 0..1, is network.heads(x): what engines run.

    network(images, targets) is torchvision's: images are float [in_channels, H, W] in 0..1, of any
    sizes. In training it takes targets, one {"boxes": [n, 4], "labels": int64 [n]} per image with n
    from 0, and returns {"bbox_regression", "classification"}, two scalars to be added. In eval mode
    it returns one {"boxes": [n, 4], "scores": [n], "labels": int64 [n]} per image, by falling
    score. Boxes are (x1, y1, x2, y2) in torchvision's pixels of the image as it came: from 0 to its
    width and height, fastmed's voxels + 0.5. All is float32, whatever the network computes in.

    The loss of validation, in eval mode and without gradients, next to the detections:

        output = network.heads(images)
        losses, found = network.losses(output, images, targets), network.detections(output, images)

    Raises ValueError for wrong shapes, and for targets that name no box or no class; TypeError for
    images that are no floats.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, as in torchvision 0.28;
    Simonyan and Zisserman, ICLR 2015, for VGG16; He et al., ICCV 2015, and Glorot and Bengio,
    AISTATS 2010, for the first weights of VGG16 and of all that follows it.
    """

    dimensions = 2

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        *,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        candidates: int = 400,
        detections: int = 200,
    ):
        super().__init__()
        check_counts(in_channels=in_channels, candidates=candidates, detections=detections)
        if num_classes < 2:
            raise ValueError(
                f"num_classes {num_classes}: expected background and at least one more"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.candidates, self.max_detections = candidates, detections
        self.backbone = _Backbone(in_channels)
        self.head = nn.ModuleDict(
            {
                "classification_head": _predictors(num_classes),
                "regression_head": _predictors(4),
            }
        )
        mean = _MEAN if in_channels == 3 else (sum(_MEAN) / 3,) * in_channels
        self._loss = DetectionLoss(
            num_classes, "hard_negative", "iou", "smooth_l1", empty_negatives=0
        )
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)

    @property
    def defaults(self) -> Tensor:
        """The default boxes, [8732, 4] float32 in torchvision's pixels of the 300 x 300 grid."""
        return default_boxes_ssd300(device=self.mean.device) + _TO_PIXELS

    def forward(self, images: Tensor | list[Tensor], targets: list[dict] | None = None):
        if isinstance(images, Tensor):
            return self.heads(images)
        if not self.training:
            return self.detections(self.heads(images), images)
        if targets is None:
            raise ValueError("targets: None in training; expected one dict per image")
        _check_targets(images, targets, self.num_classes)
        return self._losses(self.heads(images), images, targets)

    def heads(self, images: Tensor | list[Tensor]) -> Tensor:
        """Codes and logits of every default box, [B, 8732, 4 + num_classes].

        images: [B, in_channels, 300, 300] float in 0..1, or a list as forward takes it, which is
            resized. The mean and scale that VGG16 wants are applied in here.

        The order of the boxes is that of boxes.default_boxes_ssd300, and boxes.decode with
        boxes.WEIGHTS_2D makes boxes of the codes; the softmax of the logits is the score.
        """
        if isinstance(images, Tensor):
            _check_batch(images, self.in_channels)
            features = self.backbone(self._normalised(images))
        else:
            features = self.backbone(self._batch(images))
        levels = []
        for place, feature in enumerate(features):
            codes, logits = (
                self.head[name]["module_list"][place](feature).unflatten(1, (-1, columns))
                for name, columns in (
                    ("regression_head", 4),
                    ("classification_head", self.num_classes),
                )
            )
            both = torch.cat([codes, logits], dim=2)  # [B, boxes at a place, columns, H, W]
            levels.append(both.permute(0, 3, 4, 1, 2).flatten(1, 3))
        return torch.cat(levels, dim=1)

    def losses(
        self, output: Tensor, images: list[Tensor], targets: list[dict]
    ) -> dict[str, Tensor]:
        """The two losses of `output`, which heads gave for `images`, in any mode.

        Returns {"bbox_regression", "classification"}: smooth L1 of the codes of matched boxes, and
        cross-entropy of these and of the three times as many unmatched ones that are worst; both
        summed over the batch and divided by the count of matched boxes.
        """
        _check_targets(images, targets, self.num_classes)
        return self._losses(output, images, targets)

    def _losses(self, output: Tensor, images: list[Tensor], targets: list[dict]) -> dict:
        resized = [
            Targets(target["boxes"].float() / _scale(image), target["labels"])
            for image, target in zip(images, targets, strict=True)
        ]
        classes, boxes = self._loss.parts(output, self.defaults, SSD300_PER_LEVEL, resized)
        return {"bbox_regression": boxes, "classification": classes}

    @torch.no_grad()
    def detections(self, output: Tensor, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """The boxes in `output`, which heads gave for `images`, as forward returns them."""
        output = output.float()
        defaults, found = self.defaults, []
        for codes, scores, image in zip(
            output[..., :4], output[..., 4:].softmax(-1), images, strict=True
        ):
            boxes = decode(codes, defaults, WEIGHTS_2D).clamp(0, SIZE)
            picked = [self._candidates(scores[:, label]) for label in range(1, self.num_classes)]
            labels = torch.cat([torch.full_like(p, n) for n, p in enumerate(picked, 1)])
            places = torch.cat(picked)
            boxes, scores = boxes[places], scores[places, labels]
            kept = batched_nms(
                boxes, scores, labels, self.nms_threshold, max_output=self.max_detections
            )
            boxes = boxes[kept] * _scale(image)
            found.append({"boxes": boxes, "scores": scores[kept], "labels": labels[kept]})
        return found

    def _candidates(self, scores: Tensor) -> Tensor:
        """Indices of the best scores above the threshold."""
        # Selected first, as torchvision does: of equal scores topk may pick others among more.
        above = (scores > self.score_threshold).nonzero()[:, 0]
        return above[scores[above].topk(min(self.candidates, len(above))).indices]

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / _STD

    def _batch(self, images: list[Tensor]) -> Tensor:
        """[B, in_channels, 300, 300], normalised and resized, in torchvision's order."""
        if not images:
            raise ValueError("images: an empty list; expected at least one [C, H, W]")
        for place, image in enumerate(images):
            _check_image(image, f"images[{place}]", self.in_channels)
        return torch.cat(
            [
                F.interpolate(self._normalised(image)[None], size=(SIZE, SIZE), mode="bilinear")
                for image in images
            ]
        )


class _Backbone(nn.Module):
    """VGG16 up to conv5_3 and SSD's layers after it; gives features of 38, 19, 10, 5, 3 and 1."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.scale_weight = nn.Parameter(torch.full((512,), 20.0))
        self.features = nn.Sequential(
            *_convs(in_channels, 64, 2),
            nn.MaxPool2d(2),
            *_convs(64, 128, 2),
            nn.MaxPool2d(2),
            *_convs(128, 256, 3),
            nn.MaxPool2d(2, ceil_mode=True),  # 75 becomes 38, as in the paper
            *_convs(256, 512, 3),
        )
        conv5 = _convs(512, 512, 3)
        fully_connected = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        self.extra = nn.ModuleList(
            [
                nn.Sequential(nn.MaxPool2d(2), *conv5, fully_connected),
                _shrinking(1024, 256, 512, stride=2, padding=1),
                _shrinking(512, 128, 256, stride=2, padding=1),
                _shrinking(256, 128, 256),
                _shrinking(256, 128, 256),
            ]
        )
        for layer in (*self.features, *conv5):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        for block in (fully_connected, *self.extra[1:]):
            _start_by_xavier(block)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features(x)
        # 512 squares may leave fp16's range: in a lower precision they add up in float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        features = [self.scale_weight[:, None, None] * F.normalize(x.to(wide)).to(x.dtype)]
        for block in self.extra:
            x = block(x)
            features.append(x)
        return features


def _convs(in_channels: int, out_channels: int, count: int) -> list[nn.Module]:
    layers = []
    for place in range(count):
        before = out_channels if place else in_channels
        layers += [nn.Conv2d(before, out_channels, 3, padding=1), nn.ReLU(inplace=True)]
    return layers


def _shrinking(in_channels: int, narrow: int, out_channels: int, **arguments) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, narrow, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, out_channels, 3, **arguments),
        nn.ReLU(inplace=True),
    )


def _predictors(columns: int) -> nn.ModuleDict:
    """One convolution per level, to `columns` numbers for each default box of a place."""
    levels = nn.ModuleList(
        nn.Conv2d(channels, boxes * columns, 3, padding=1) for channels, boxes in _LEVELS
    )
    _start_by_xavier(levels)
    return nn.ModuleDict({"module_list": levels})


def _start_by_xavier(block: nn.Module) -> None:
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _scale(image: Tensor) -> Tensor:
    """What takes (x, y, x, y) in the 300 x 300 grid to pixels of the image."""
    height, width = image.shape[-2:]
    return torch.tensor([width / SIZE, height / SIZE] * 2, device=image.device)


def _check_batch(x: Tensor, in_channels: int) -> None:
    if torch.compiler.is_compiling():
        return
    if x.dim() != 4 or list(x.shape[1:]) != [in_channels, SIZE, SIZE]:
        raise ValueError(
            f"SSD300: expected [B, {in_channels}, {SIZE}, {SIZE}], got {list(x.shape)}"
        )


def _check_image(image: Tensor, name: str, in_channels: int) -> None:
    if not image.is_floating_point():
        raise TypeError(f"{name}: expected floats in 0..1, got {image.dtype}")
    if image.dim() != 3 or image.shape[0] != in_channels or 0 in image.shape:
        raise ValueError(f"{name}: expected [{in_channels}, H, W], got {list(image.shape)}")


def _check_targets(images: list[Tensor], targets: list[dict], num_classes: int) -> None:
    if len(targets) != len(images):
        raise ValueError(f"targets: {len(targets)} for {len(images)} images; expected one for each")
    for place, target in enumerate(targets):
        name = f"targets[{place}]"
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} boxes: expected [n, 4], got {list(boxes.shape)}")
        if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"{name} labels: expected int64 [{len(boxes)}], one for every box, "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        # A NaN is above nothing, and an infinite box has no centre.
        bad = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
        if bad.any():
            which = int(bad.nonzero()[0])
            raise ValueError(
                f"{name} boxes[{which}]: {boxes[which].tolist()} is no box; expected finite "
                "x1 < x2 and y1 < y2"
            )
        strange = (labels < 1) | (labels >= num_classes)
        if strange.any():
            which = int(strange.nonzero()[0])
            raise ValueError(
                f"{name} labels[{which}]: {int(labels[which])} is no class; expected 1 to "
                f"{num_classes - 1}, as 0 is background"
            )
