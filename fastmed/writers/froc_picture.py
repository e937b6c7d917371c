"""The FROC curve as a picture: its band, and the rates whose mean is the CPM."""

from __future__ import annotations

import io

import numpy as np

from fastmed.metrics.froc import RATES, Froc

_BLUE, _ORANGE, _DARK = "#35718f", "#d9622b", "#444444"
_RATE_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def froc_png(froc: Froc, caption: str) -> bytes:
    """Draws sensitivity over false positives per scan (logarithmic, 1/8 to 8), as PNG.

    caption: one line below the title, such as how many findings on how many scans.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if froc.resamples:
        axes.fill_between(
            froc.band_rates, *froc.curve_band.T, color=_BLUE, alpha=0.18, lw=0,
            label=f"middle 95 % of {froc.resamples} resamples of the scans",
        )  # fmt: skip
    axes.plot(*_drawn(froc), color=_BLUE, lw=1.8)
    axes.plot(
        RATES, froc.sensitivities, "o", color=_ORANGE, ms=6, clip_on=False, zorder=3,
        label="sensitivity at the seven rates",
    )  # fmt: skip
    axes.axhline(froc.cpm, color=_ORANGE, lw=1, ls="--", label="their mean, the CPM")
    for rate, sensitivity in zip(RATES, froc.sensitivities, strict=True):
        # Away from the line of the mean, and on the side where the rising curve is not.
        is_above = sensitivity < 0.1 or froc.cpm < sensitivity < 0.93
        axes.annotate(
            f"{sensitivity:.3f}", (rate, sensitivity), (-3, 6) if is_above else (3, -6),
            textcoords="offset points", fontsize=8, color=_DARK, annotation_clip=False,
            ha="right" if is_above else "left", va="bottom" if is_above else "top",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlim=(RATES[0] / 1.5, RATES[-1] * 1.5), ylim=(0, 1.02))
    axes.set_xticks(RATES, _RATE_NAMES)
    axes.minorticks_off()
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set_xlabel("false positives per scan")
    axes.set_ylabel("sensitivity")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"FROC: CPM {froc.cpm:.3f}\n", loc="left", fontsize=11)
    axes.text(0, 1.02, caption, transform=axes.transAxes, fontsize=9, color=_DARK)
    corner = "upper left" if froc.cpm < 0.5 else "lower right"
    axes.legend(loc=corner, fontsize=9, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _drawn(froc: Froc) -> tuple[np.ndarray, np.ndarray]:
    """The curve's points between the least and the greatest rate, and those at both."""
    least, most = RATES[0], RATES[-1]
    inside = (froc.rates > least) & (froc.rates < most)
    return (
        np.concatenate([[least], froc.rates[inside], [most]]),
        np.concatenate([froc.sensitivities[:1], froc.curve[inside], froc.sensitivities[-1:]]),
    )
