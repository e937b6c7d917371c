"""Pictures of a run: its curves, and samples with truth and prediction."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from fastmed.losses import Targets
from fastmed.training.batches import Batch
from fastmed.writers.palette import label_color

_CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "SimHei",
    "Microsoft YaHei", "PingFang SC", "AR PL UMing CN", "AR PL UKai CN",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Panel:
    """One sample: a grey image [H, W] in 0..1 and, on the same pixels, truth and prediction.

    truth, prediction: [H, W] label values; None where there are none. caption: one line below.
    truth_boxes, found_boxes: [n, 4] (x1, y1, x2, y2) in pixels of the image.
    """

    image: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray | None
    caption: str
    truth_boxes: np.ndarray = field(default_factory=partial(np.zeros, (0, 4)))
    found_boxes: np.ndarray = field(default_factory=partial(np.zeros, (0, 4)))


def curves_png(history: Sequence[dict[str, Any]]) -> bytes:
    """Draws loss, scores and learning rate against the epoch, as PNG."""
    from matplotlib.ticker import MaxNLocator

    kinds = ["loss", *_scores_of(history), "learning_rate"]
    figure = _figure(len(kinds), 3.6, 2.8, per_row=3)
    epochs = [row["epoch"] for row in history]
    for axes, kind in zip(figure.axes, kinds, strict=True):
        for part, color in (("train", "#35718f"), ("val", "#d9622b")):
            name = kind if kind == "learning_rate" else f"{part}_{kind}"
            values = [row.get(name) for row in history]
            points = [(e, v) for e, v in zip(epochs, values, strict=True) if v is not None]
            if points and not (kind == "learning_rate" and part == "val"):
                label = "" if kind == "learning_rate" else part
                axes.plot(*zip(*points, strict=True), color=color, label=label, marker=".", lw=1.4)
        axes.set_title(kind.replace("_", " "), loc="left", fontsize=10)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if kind == "learning_rate":
            axes.set_yscale("log")
        elif axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def calibration_png(curve: Sequence[tuple[float, float, int]], error: float) -> bytes:
    """Draws a reliability diagram. curve: (mean probability, share of positives, scans) per bin."""
    figure = _figure(1, 4.2, 4.0, per_row=1)
    axes = figure.axes[0]
    axes.plot((0, 1), (0, 1), color="#999999", lw=1, ls="--")
    points = [(p, share, n) for p, share, n in curve if n]
    if points:
        p, share, n = zip(*points, strict=True)
        axes.plot(p, share, color="#d9622b", lw=1.2)
        axes.scatter(p, share, s=[12 + 100 * k / max(n) for k in n], color="#d9622b", alpha=0.7)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of positives")
    axes.set_title(f"calibration error {error:.3f}", loc="left", fontsize=10)
    return _png(figure)


def panels_png(panels: Sequence[Panel], per_row: int = 4) -> bytes:
    """Draws samples side by side: truth as a line, prediction as a tint, boxes as frames."""
    figure = _figure(len(panels), 2.8, 3.1, per_row=per_row)
    for axes, panel in zip(figure.axes, panels, strict=True):
        axes.imshow(panel_image(panel), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(drawable(panel.caption), y=-0.14, fontsize=8)
    return _png(figure)


def sample_panels(batch: Batch) -> list[Panel]:
    """A panel per sample of a training batch: the slice with the most truth, else the middle."""
    if isinstance(batch.target, list):
        return [
            _box_panel(image, targets, name)
            for image, targets, name in zip(
                batch.image.cpu().numpy(), batch.target, batch.names, strict=True
            )
        ]
    panels = []
    images, targets = batch.image[:, 0].cpu().numpy(), batch.target.cpu().numpy()
    for image, target, name in zip(images, targets, batch.names, strict=True):
        image = image[None] if image.ndim == 2 else image
        if target.ndim == 0:
            caption = f"{name}: class {target}"
            panels.append(Panel(image[len(image) // 2], None, None, caption))
            continue
        target = target[None] if target.ndim == 2 else target
        per_slice = np.count_nonzero(target, axis=(1, 2))
        z = int(per_slice.argmax()) if per_slice.any() else len(image) // 2
        panels.append(Panel(image[z], target[z], None, name))
    return panels


def _box_panel(image: np.ndarray, targets: Targets, name: str) -> Panel:
    """The slice through a patch's largest true box, else the middle; in 2D the middle channel."""
    boxes = targets.boxes[targets.labels > 0].cpu().numpy()
    if image.ndim == 3:
        return Panel(image[len(image) // 2], None, None, name, truth_boxes=boxes)
    z = image.shape[1] // 2
    if len(boxes):
        largest = boxes[(boxes[:, 3:] - boxes[:, :3]).prod(1).argmax()]
        z = int(np.clip(np.rint((largest[2] + largest[5]) / 2), 0, image.shape[1] - 1))
    cut = boxes[(boxes[:, 2] <= z) & (boxes[:, 5] >= z)]
    return Panel(image[0, z], None, None, name, truth_boxes=cut[:, (0, 1, 3, 4)])


def panel_image(panel: Panel) -> np.ndarray:
    """Returns [H, W, 3] uint8: prediction tinted, the truth's outline drawn bright."""
    gray = np.clip(np.nan_to_num(panel.image), 0, 1) * 255
    picture = np.repeat(gray[..., None], 3, axis=2)
    if panel.prediction is not None:
        for value in np.unique(panel.prediction[panel.prediction > 0]):
            inside = panel.prediction == value
            picture[inside] = 0.55 * picture[inside] + 0.45 * np.array(label_color(int(value)))
    if panel.truth is not None:
        for value in np.unique(panel.truth[panel.truth > 0]):
            picture[_outline(panel.truth == value)] = 255
    for boxes, color in ((panel.truth_boxes, 255), (panel.found_boxes, label_color(1))):
        for box in boxes:
            picture[_frame(box, picture.shape)] = color
    return picture.round().astype(np.uint8)


def drawable(text: str) -> str:
    """The text with each character that no font at hand has replaced by its number, as U+809D."""
    known = _drawable_characters()
    return "".join(c if ord(c) in known else f"U+{ord(c):04X} " for c in text).strip()


def _outline(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _frame(box: np.ndarray, shape) -> np.ndarray:
    """The pixels just outside a box, so that what is in it can be seen."""
    x1, y1, x2, y2 = box
    mask = np.zeros(shape[:2], bool)
    left, top = (int(np.floor(v + 0.5)) for v in (x1, y1))
    right, bottom = (int(np.ceil(v + 0.5)) for v in (x2, y2))
    mask[max(top - 1, 0) : max(bottom + 1, 0), max(left - 1, 0) : max(right + 1, 0)] = True
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = False
    return mask


def _scores_of(history: Sequence[dict[str, Any]]) -> list[str]:
    names = (name for row in history for name in row)
    scores = (n.partition("_")[2] for n in names if n.startswith(("train_", "val_")))
    return [name for name in dict.fromkeys(scores) if name != "loss"]


def _figure(count: int, width: float, height: float, *, per_row: int):
    """A figure of its own, which no global state keeps alive, with `count` axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, per_row)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    for number in range(count):
        figure.add_subplot(rows, columns, number + 1)
    return figure


def _png(figure) -> bytes:
    import matplotlib

    with matplotlib.rc_context({"font.family": ["DejaVu Sans", *_cjk_fonts()]}):
        for text in figure.findobj(lambda artist: hasattr(artist, "set_fontfamily")):
            text.set_fontfamily(["DejaVu Sans", *_cjk_fonts()])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


@cache
def _cjk_fonts() -> tuple[str, ...]:
    """Fonts of this machine that have Chinese characters, by name."""
    from matplotlib import font_manager

    present = {entry.name for entry in font_manager.fontManager.ttflist}
    return tuple(name for name in _CJK_FONTS if name in present)


@cache
def _drawable_characters() -> frozenset[int]:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    known: set[int] = set()
    for name in ("DejaVu Sans", *_cjk_fonts()):
        known |= FT2Font(font_manager.findfont(name)).get_charmap().keys()
    return frozenset(known)
