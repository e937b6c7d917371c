"""report.html of thousands of scans in headless Chromium: load, pictures fetched, sort, filter.

python benches/bench_report.py --scans 200 2000 50000 [--shots DIR]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from fastmed.testing import browser
from fastmed.writers.report import ReportRow, write_report
from fastmed.writers.thumbnail import THUMBNAIL, thumbnail

_LABELS = ("liver", "spleen", "kidney left", "kidney right", "aorta")
_MANIFEST = {
    "engine": "ov",
    "device": "cpu",
    "model": {"name": "demo", "trained_on": "phantoms"},
    "notice": "For research use; not a medical device.",
}


def rows(count: int, folder: Path):
    """Yields rows of an archive: 92 % done, each with files of its own beside the page."""
    random = np.random.default_rng(1)
    preview, plane = _picture()
    small = thumbnail(Image.open(io.BytesIO(preview)), plane)
    for k in range(count):
        name = f"1.2.840.113619.2.55.3.{random.integers(10**9)}.{k}"
        source = f"export/2019-{k % 12 + 1:02d}/study{k // 3:05d}/series{k % 3 + 1}"
        seconds = round(float(random.gamma(4, 2)), 2)
        if (other := random.random()) > 0.92:
            verdict, reason = _OTHERS[int((other - 0.92) / 0.08 * len(_OTHERS))]
            yield ReportRow(name, source, verdict, reason)
            continue
        target = folder / "series" / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "preview.png").write_bytes(preview)
        (target / THUMBNAIL).write_bytes(small)
        warnings = ("tilted 18.5 degrees",) if random.random() < 0.1 else ()
        yield ReportRow(
            name,
            source,
            findings=_findings(name, source, random, warnings),
            preview_png=f"series/{name}/preview.png",
            seconds=seconds,
        )


_OTHERS = (
    ("refused", "3 slices missing between z = -104.0 and -96.0 mm; --lenient interpolates them"),
    ("failed", "0007.dcm is truncated: 1024 of 524288 bytes of pixels; copy it again"),
    ("skipped", "a localizer: a projection for planning, not a slice"),
    ("skipped", "a radiation dose report"),
)


def _findings(name: str, source: str, random, warnings) -> dict:
    volumes = random.gamma(3, (500, 80, 60, 60, 40)) * (random.random(5) > 0.15)
    return {
        "series": name,
        "source": source,
        "modality": "ct",
        "geometry": {
            "shape_zyx": [int(random.integers(60, 400)), 512, 512],
            "spacing_mm_zyx": [2.0, 0.78, 0.78],
            "tilt_degrees": 18.5 if warnings else 0.0,
        },
        "masks": [
            {"label": label, "volume_ml": float(ml), "mean_hu": 55.0, "voxels": int(ml * 800)}
            for label, ml in zip(_LABELS, volumes, strict=True)
        ],
        "boxes": [],
        "scores": [],
        "warnings": list(warnings),
    }


def _picture() -> tuple[bytes, tuple[int, int, int, int]]:
    """A preview as the writers draw it, of the phantom, and where its axial plane stands."""
    y, x = np.mgrid[-1:1:440j, -1:1:440j]
    body = np.where(x**2 / 0.8 + y**2 / 0.5 < 1, 120, 8)[..., None].repeat(3, axis=2)
    body[(x + 0.35) ** 2 + y**2 < 0.09] = (230, 130, 70)
    picture = np.full((620, 1384, 3), (13, 15, 19), np.uint8)
    for left in (20, 472, 924):
        picture[50:490, left : left + 440] = body
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue(), (20, 50, 460, 490)


_TIMED = """(async (act) => {
  const start = performance.now(); act();
  await new Promise(requestAnimationFrame);
  await new Promise((done) => setTimeout(done));
  return performance.now() - start;
})"""
_ACTS = {
    "sort by scan": "() => document.querySelectorAll('th button')[1].click()",
    "sort by findings": "() => document.querySelectorAll('th button')[3].click()",
    "sort by remarks": "() => document.querySelectorAll('th button')[5].click()",
    "filter by finding": """() => { const f = document.getElementById('finding');
        f.value = '1'; f.dispatchEvent(new Event('change')); }""",
    "filter by text": """() => { const w = document.getElementById('words');
        w.value = 'series2 liver'; w.dispatchEvent(new Event('input')); }""",
    "filter by verdict": "() => document.getElementById('show-done').click()",
    "clear": "() => document.getElementById('clear').click()",
}


def measure(count: int, shots: Path | None) -> None:
    """Writes and opens one page; prints its figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = list(rows(count, folder))
        start = time.perf_counter()
        counts = Counter(row.verdict for row in made)
        write_report(iter(made), _MANIFEST, folder / "report.html", counts=counts)
        written = time.perf_counter() - start
        page = folder / "report.html"
        print(f"\n{count} scans: written in {written:.2f} s, {page.stat().st_size / 1e6:.2f} MB")
        with browser.Browser(browser.find(), folder / "profile") as chromium:
            loaded = chromium.open(page)
            chromium.drain(1.0)
            pictures = sum(url.endswith(".jpg") for url in chromium.requests)
            print(f"  load event after {loaded:.2f} s; {pictures} pictures fetched at first")
            for name, act in _ACTS.items() if count > 24 else ():
                times = [chromium.evaluate(f"{_TIMED}({act})")]
                print(f"  {name}: {times[0]:.0f} ms")
            if chromium.complaints:
                print("  console:", chromium.complaints[:5])
            if shots:
                _shoot(chromium, page, shots, count)


def _shoot(chromium, page: Path, shots: Path, count: int) -> None:
    shots.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        chromium.prefer(scheme)
        for width, height in ((1440, 900), (900, 900), (420, 900)):
            chromium.resize(width, height)
            chromium.open(page)
            chromium.drain(0.5)
            chromium.screenshot(shots / f"{count}-{scheme}-{width}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--shots", type=Path)
    options = parser.parse_args()
    if not browser.find():
        raise SystemExit("no Chromium here: install it, or name it in FASTMED_CHROMIUM")
    for scans in options.scans:
        measure(scans, options.shots)
