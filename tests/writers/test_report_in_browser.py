"""report.html in a real browser: quick with 2,000 scans, sorted, filtered, deaf to what it shows.

Headless Chromium runs it where there is one: FASTMED_CHROMIUM, else chromium or google-chrome.
"""

import io

import pytest
from PIL import Image

from fastmed.testing import browser
from fastmed.writers.report import ReportRow, write_report

_HOSTILE = (
    "</script></select><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'\u202e\0"
)
_LABELS = ("liver", "spleen", _HOSTILE)


def _findings(name: str, volumes) -> dict:
    return {
        "modality": "ct",
        "geometry": {"shape_zyx": [9, 8, 7], "spacing_mm_zyx": [1, 1, 1], "tilt_degrees": 0.0},
        "masks": [
            {"label": label, "volume_ml": float(ml), "mean_hu": 5.0, "voxels": int(10 * ml)}
            for label, ml in zip(_LABELS, volumes, strict=True)
        ],
        "boxes": [],
        "scores": [],
        "warnings": [],
    }


def _rows(count: int, folder):
    """Four of five are done; the liver grows by the row, each tenth has a spleen."""
    buffer = io.BytesIO()
    Image.new("RGB", (300, 100), (200, 90, 30)).save(buffer, "PNG")
    for k in range(count):
        if k % 5 == 4:
            yield ReportRow(f"{k}", f"scans/{k}", "refused", f"{_HOSTILE} of {k}")
            continue
        place = folder / "series" / f"{k}"
        place.mkdir(parents=True)
        (place / "preview.png").write_bytes(buffer.getvalue())
        volumes = (k + 1, 50.0 if k % 10 == 0 else 0.0, 2.5 if k == 7 else 0.0)
        yield ReportRow(
            f"{k}",
            f"scans/{k}",
            findings=_findings(f"{k}", volumes),
            preview_png=f"series/{k}/preview.png",
            seconds=float(count - k),
        )


@pytest.fixture(scope="module")
def program() -> str:
    found = browser.find()
    if not found:
        pytest.skip("no Chromium on the PATH; FASTMED_CHROMIUM names another place")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rows = _rows(2000, folder)
    counts = {"done": 1600, "refused": 400}
    write_report(rows, {"notice": _HOSTILE}, folder / "report.html", counts=counts)
    return folder


@pytest.fixture
def opened(program, folder, tmp_path):
    """Returns a function that opens the page of 2,000 scans in a browser of its own."""
    browsers = []

    def open_page(**options):
        page = browser.Browser(program, tmp_path / f"profile{len(browsers)}", **options)
        browsers.append(page)
        page.seconds = page.open(folder / "report.html")
        page.drain()
        return page

    yield open_page
    for page in browsers:
        page.__exit__()


_VISIBLE = "[...document.querySelectorAll('#scans tbody tr')].filter(r => r.checkVisibility())"
_SCANS = f"{_VISIBLE}.map(row => row.cells[2].querySelector('b').textContent)"
_COUNTS = "[...document.querySelectorAll('.counts b')].map(b => Number(b.textContent))"


def _click(page, selector: str) -> None:
    page.evaluate(f"document.querySelector({selector!r}).click()")


def _choose(page, finding: str) -> None:
    page.evaluate(
        "(() => { const f = document.getElementById('finding'); const o = [...f.options];"
        f" f.value = o.find(x => x.text.startsWith({finding!r})).value;"
        " f.dispatchEvent(new Event('change')); })()"
    )


def _type(page, words: str) -> None:
    page.evaluate(
        f"(() => {{ const w = document.getElementById('words'); w.value = {words!r};"
        " w.dispatchEvent(new Event('input')); })()"
    )


def test_two_thousand_scans_open_at_once_and_fetch_what_is_seen(opened):
    page = opened()
    assert page.seconds < 10  # 0.7 s where nothing else runs
    assert page.evaluate("document.querySelectorAll('#scans tbody tr').length") == 2000
    pictures = [url for url in page.requests if url.endswith(".png")]
    assert 3 <= len(pictures) <= 60
    shown = page.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth).length")
    assert shown == len(pictures)
    assert all(url.startswith(("file:", "data:")) for url in page.requests)


def test_a_text_runs_nothing_and_breaks_nothing(opened):
    page = opened()
    page.drain(0.5)
    assert page.evaluate("window.hit === undefined")
    assert page.complaints == []
    assert page.evaluate("document.scripts.length") == 1
    # What got past the escaping would meet the policy.
    with pytest.raises(RuntimeError, match="TrustedScript"):
        page.evaluate("document.body.setAttribute('onclick', 'window.hit = 1')")
    page.evaluate("document.body.setAttribute('style', 'background: red')")
    page.drain()
    assert any("style-src" in complaint for complaint in page.complaints)


def test_every_column_sorts_both_ways(opened):
    page = opened()
    expected = {
        "place": ("scans/1999", "scans/0"),  # the page opens in this order, rising
        "scan": ("scans/0", "scans/1999"),
        "verdict": ("scans/4", "scans/0"),
        "figure": ("scans/1998", "scans/1"),
        "voxels": ("scans/0", "scans/0"),
        "remarks": ("scans/4", "scans/1999"),
        "seconds": ("scans/0", "scans/1998"),
    }
    columns = page.evaluate("[...document.querySelectorAll('th[data-by]')].map(h => h.dataset.by)")
    assert columns == list(expected)
    for column, (once, twice) in expected.items():
        for first in (once, twice):
            _click(page, f"th[data-by={column}] button")
            assert page.evaluate(f"{_SCANS}[0]") == first, column
    assert page.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1
    assert page.evaluate(f"{_SCANS}.length") == 2000


def test_filters_meet_and_counts_follow(opened):
    page = opened()
    assert page.evaluate(_COUNTS) == [2000, 1600, 400, 0, 0]
    _choose(page, "spleen")
    assert page.evaluate(_COUNTS) == [200, 200, 0, 0, 0]
    _type(page, "scans/199")
    assert page.evaluate(_SCANS) == ["scans/1990"]
    _choose(page, "any")
    assert page.evaluate(_COUNTS) == [11, 8, 3, 0, 0]
    _click(page, "#show-refused")
    assert page.evaluate(_SCANS) == ["scans/199", "scans/1994", "scans/1999"]
    assert page.evaluate("document.getElementById('shown').textContent") == "3 of 2000 scans shown"
    _click(page, "#clear")
    assert page.evaluate(f"{_SCANS}.length") == 2000
    _choose(page, "</script>")
    assert page.evaluate(_SCANS) == ["scans/7"]
    _type(page, "no such words")
    assert page.evaluate("document.getElementById('none').checkVisibility()")


def test_findings_sort_by_the_one_that_is_chosen(opened):
    page = opened()
    _choose(page, "spleen")
    _click(page, "th[data-by=figure] button")
    assert page.evaluate(f"{_SCANS}[0]") == "scans/0"  # all have 50 ml: the order of the run
    _choose(page, "liver")
    assert page.evaluate(f"{_SCANS}[0]") == "scans/1998"


def test_the_keyboard_reaches_everything(opened):
    page = opened()
    reached = []
    for _ in range(14):
        page.press("Tab", 9)
        reached.append(page.evaluate("(e => e.id || e.textContent.trim())(document.activeElement)"))
    assert {"show-all", "words", "finding", "Scan", "Findings", "Seconds", "#"} <= set(reached)
    page.evaluate("document.querySelector('th[data-by=seconds] button').focus()")
    page.press("Enter", 13)
    assert page.evaluate("document.querySelector('[aria-sort]').dataset.by") == "seconds"


def test_nothing_jumps_when_pictures_arrive(opened):
    page = opened()
    before = page.evaluate(f"{_VISIBLE}.slice(0, 20).map(r => r.offsetHeight)")
    page.evaluate("[...document.images].slice(0, 20).forEach(i => i.removeAttribute('src'))")
    assert page.evaluate(f"{_VISIBLE}.slice(0, 20).map(r => r.offsetHeight)") == before


_UNSEEN = r"layout|box model"


def test_without_scripts_it_is_a_plain_table(program, folder, tmp_path):
    with browser.Browser(program, tmp_path / "profile", scripts=False) as page:
        page.open(folder / "report.html")
        root = page.call("DOM.getDocument", depth=0)["root"]["nodeId"]

        def found(selector):
            return page.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]

        assert len(found("#scans tbody tr")) == 2000
        assert len(found("th button")) == 0
        assert len(found(".tools[hidden]")) == 1
        (refused,) = found("label[for=show-refused]")
        with pytest.raises(RuntimeError, match=_UNSEEN):
            page.call("DOM.getBoxModel", nodeId=found(".tools")[0])
        x, y, *_ = page.call("DOM.getBoxModel", nodeId=refused)["model"]["content"]
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": x + 5, "y": y + 5, "button": "left", "clickCount": 1}
            page.call("Input.dispatchMouseEvent", type=kind, **at)
        page.drain()
        rows = found("#scans tbody tr")
        with pytest.raises(RuntimeError, match=_UNSEEN):
            page.call("DOM.getBoxModel", nodeId=rows[0])
        assert page.call("DOM.getBoxModel", nodeId=rows[4])["model"]["height"] > 20


@pytest.mark.parametrize("count", [1, 24, 200])
@pytest.mark.parametrize("width", [1440, 900, 400])
def test_no_page_is_wider_than_its_window(count, width, program, tmp_path):
    rows = [*_rows(count, tmp_path)]
    rows[0] = ReportRow("a" * 64, "b" * 3000, "done", "c" * 10_000)
    write_report(rows, {"d" * 300: "e" * 300}, tmp_path / "report.html")
    with browser.Browser(program, tmp_path / "profile", width=width) as page:
        page.open(tmp_path / "report.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.resize(1000, 700)  # a page of many rows must take that in its stride
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000
        assert page.complaints == []
