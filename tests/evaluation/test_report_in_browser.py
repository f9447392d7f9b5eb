"""A browser shows the numbers and pictures of a report's files, whatever their names.

These tests are skipped where there is no Chromium (Debian: apt install chromium).
"""

import json

import chromium
import numpy as np
import pytest
from reported import HOSTILE, PERCENT, element

from codec.evaluation.codecs import rival_codec
from codec.evaluation.evaluate import run
from codec.evaluation.report import write_report


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    program = chromium.find()
    if program is None:
        pytest.skip("no Chromium is installed")
    with chromium.Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chrome, evaluation):
    """The report, opened in a window of 1280x900, its pictures loaded."""
    chrome.size(1280, 900)
    chrome.media(prefers_color_scheme="light")
    chrome.messages.clear()
    chrome.open(evaluation[0] / "report.html")
    settle(chrome)
    yield chrome
    assert chrome.messages == []  # no error, nothing refused by the content security policy


def settle(browser):
    """Wait until the figures are drawn and the last choice is shown."""
    browser.run(
        "new Promise((done) => { const look = () => document.querySelector('#plot svg') &&"
        " by('viewer').dataset.turn == turn ? done() : setTimeout(look, 5); look(); })"
    )


def select(browser, name, text):
    index = browser.run(f"[...by('{name}').options].findIndex((option) => option.text === {json.dumps(text)})")
    browser.run(f"by('{name}').selectedIndex = {index}; by('{name}').dispatchEvent(new Event('change')); null")
    settle(browser)


def press(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")
    settle(browser)


def shown_numbers(browser):
    """What the table under the viewer says: its rows of texts."""
    return browser.run(
        "[...by('numbers').querySelectorAll('tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )


def canvas(browser, side):
    """The pixels (H, W, 3) that a side of the viewer shows."""
    width, height, data = browser.run(
        f"(() => {{ const c = sides[{side}].canvas; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        " return [c.width, c.height, Array.from(d.data)]; })()"
    )
    return np.array(data, dtype=np.uint8).reshape(height, width, 4)[:, :, :3]


def stage(browser):
    """Left, top, width and height of the viewer's stage, once it has been scrolled into the window and drawn."""
    return browser.run(
        "new Promise((done) => { stage.scrollIntoView({block: 'center', behavior: 'instant'});"
        " requestAnimationFrame(() => requestAnimationFrame(() => {"
        " const {x, y, width, height} = stage.getBoundingClientRect(); done([x, y, width, height]); })); })"
    )


def test_the_viewer_shows_the_numbers_of_the_files_of_the_image_that_is_chosen(browser, evaluation):
    _, results, _, _ = evaluation
    for image in (HOSTILE, "face"):
        select(browser, "image", image)
        for pair in (("lic", "jpeg"), ("webp", "lic"), ("avif", "original")):
            for side, name in zip("ab", pair, strict=True):
                select(browser, side, name)
            table = shown_numbers(browser)
            for n, name in enumerate(pair):
                rows = {
                    str(row.quality): row for r in results for row in r.rows if (r.name, row.image) == (name, image)
                }
                column = [line[n + 1] for line in table]
                if name == "original":
                    assert column == ["B: original", "–", "–", "–", "–", "–", "–"]
                    continue
                row = rows[column[1]]
                assert column[0].endswith(f": {name}") and column[2] == f"{row.bytes:,}"
                assert column[3:5] == [f"{row.bpp:.3f}", f"{row.psnr:.2f}"]
                assert float(column[5]) == pytest.approx(-10 * np.log10(1 - row.ms_ssim), abs=0.006)
                assert column[6] == f"{row.ssimulacra2:.2f}".replace("-", "−")
    assert browser.run("document.title") == "Two <b>images</b>"


def test_the_second_file_is_the_one_nearest_in_size(browser, evaluation, page):
    rows = {r.name: {row.bytes for row in r.rows if row.image == "face"} for r in evaluation[1]}
    shown = json.loads(element(page, "data"))["pictures"]["images"][0]["files"]
    seen = set()
    for first, sizes in (("lic", rows["jpeg"]), ("avif", {file["bytes"] for file in shown if file["codec"] == "jpeg"})):
        select(browser, "a", first)
        for target in browser.run("[...by('target').options].map((option) => option.text)"):
            select(browser, "target", target)
            a, b = (int(size.replace(",", "")) for size in shown_numbers(browser)[2][1:])
            assert a in rows[first] and b == min(sizes, key=lambda size: abs(np.log(size / a)))
            change = 100 * (b / a - 1)
            words = f"B is {abs(change):.1f} % {'larger' if change > 0 else 'smaller'}"
            assert words in browser.run("by('numbers').innerText")
            seen.add(a)
    assert len(seen) > 2


def test_pictures_and_error_maps_are_exact(browser, evaluation):
    folder, results, images, codecs = evaluation
    select(browser, "b", "original")
    quality = int(shown_numbers(browser)[1][1])
    row = next(row for row in results[0].rows if (row.image, row.quality) == ("face", quality))
    original, decoded = (
        np.asarray(i).astype(int) for i in (images[0][1], codecs[0].decode((folder / row.file).read_bytes()))
    )
    assert np.array_equal(canvas(browser, 0), decoded) and np.array_equal(canvas(browser, 1), original)
    press(browser, "#view [value='4']")
    assert np.array_equal(canvas(browser, 0), np.minimum(4 * abs(decoded - original), 255))
    assert not canvas(browser, 1).any()


def test_the_divider_follows_keys_and_pointer(browser):
    browser.run("slider.focus()")
    browser.key("ArrowLeft", 10)
    assert browser.run("[slider.value, by('layer-a').style.clipPath]") == ["40", "inset(0px 60% 0px 0px)"]
    x, y, width, height = stage(browser)
    browser.mouse("mousePressed", x + 0.4 * width, y + height / 2)
    browser.mouse("mouseMoved", x + 0.75 * width, y + height / 2)
    browser.mouse("mouseReleased", x + 0.75 * width, y + height / 2)
    assert browser.run("slider.value") == "75" and browser.run("by('divider').style.left") == "75%"


def test_zoom_shows_pixels_and_pans_within_the_picture(browser):
    press(browser, "#zoom [value='8']")
    width, height = browser.run("[stage.clientWidth, stage.clientHeight]")
    where = "[view.x, view.y, view.zoom, getComputedStyle(sides[0].canvas).imageRendering]"
    assert browser.run(where) == [round((width - 8 * 232) / 2), round((height - 8 * 226) / 2), 8, "pixelated"]
    browser.run("stage.focus()")
    browser.key("ArrowRight")
    assert browser.run("view.x") == round((width - 8 * 232) / 2) - 40
    browser.key("ArrowLeft", 30)
    browser.key("ArrowUp", 30)
    assert browser.run("[view.x, view.y]") == [0, 0]
    assert browser.run("sides.map((side) => side.canvas.style.transform)") == ["translate(0px, 0px) scale(8)"] * 2
    x, y, *_ = stage(browser)
    browser.mouse("mousePressed", x + 200, y + 200)
    browser.mouse("mouseMoved", x + 150, y + 170)
    browser.mouse("mouseReleased", x + 150, y + 170)
    assert browser.run("[view.x, view.y, slider.value]") == [-50, -30, "50"]


def test_the_plot_names_the_nearest_point_and_hides_curves(browser, evaluation):
    means = evaluation[1][1].means()
    x, y = browser.run(
        "(() => { by('plot').scrollIntoView({block: 'center', behavior: 'instant'});"
        " const b = by('plot').getBoundingClientRect(), p = places.find((p) => p.curve.name === 'jpeg');"
        " return [b.x + p.x + 2, b.y + p.y - 2]; })()"
    )
    browser.mouse("mouseMoved", x, y)
    tip = f"{means[0]['bpp']:.3f} bpp, {means[0]['psnr']:.2f} dB"
    assert browser.run("by('tip').innerText").split("\n") == ["jpeg", tip, f"quality {means[0]['quality']}"]
    browser.mouse("mouseMoved", 1, 1)
    assert browser.run("by('tip').hidden")
    browser.run("by('plot').focus()")
    browser.key("ArrowRight", 2)
    assert browser.run("by('tip').innerText").startswith(f"lic\n{evaluation[1][0].means()[1]['bpp']:.3f} bpp")
    browser.key("ArrowDown")
    assert browser.run("by('tip').innerText").startswith("jpeg\n")
    press(browser, "#legend button:nth-child(2)")
    assert browser.run("places.some((place) => place.curve.name === 'jpeg')") is False
    assert browser.run("document.querySelector('#legend button:nth-child(2)').ariaPressed") == "false"
    press(browser, "#metric [value=ms-ssim]")
    assert browser.run("by('without').textContent") == "Without MS-SSIM: vtm."
    assert browser.run("places.length") == 3 + 2 + 1


def test_one_control_switches_curves_rates_and_words_between_the_metrics_that_were_measured(browser, evaluation):
    inputs = browser.run("[...document.querySelectorAll('#metric input')].map((input) => [input.value, input.checked])")
    assert inputs == [
        ["psnr", True], ["ms-ssim", False], ["ssimulacra2", False],
    ]  # fmt: skip
    assert browser.run("by('lead').textContent") == "lic needs 12.3 % fewer bits than jpeg at equal PSNR."
    browser.run("document.querySelector('#metric input').focus()")
    browser.key("ArrowRight", 2)
    settle(browser)
    assert browser.run("by('lead').textContent") == "lic needs 5.4 % more bits than jpeg at equal SSIMULACRA 2."
    means = {result.name: result.means() for result in evaluation[1]}
    shown = browser.run("places.filter((place) => place.curve.name === 'jpeg').map((place) => score(place.point))")
    assert shown == [point["ssimulacra2"] for point in means["jpeg"]]
    assert "+5.4 %" in browser.run("by('summary').textContent") and "12.3" not in browser.run(
        "by('summary').textContent"
    )
    assert "all SSIMULACRA 2 that both curves have" in browser.run("by('rates-note').textContent")
    for side, name in (("a", "lic"), ("b", "jpeg")):
        select(browser, side, name)
    column = [line[1] for line in shown_numbers(browser)]
    assert browser.run("by('tag-a').textContent") == f"lic, SSIMULACRA 2 {column[6]}"
    assert "its SSIMULACRA 2 " in browser.run("by('numbers').textContent")
    press(browser, "#metric [value=ms-ssim]")  # of which there is no BD-rate
    assert browser.run("by('lead').textContent") == "lic, jpeg, webp, avif"
    assert "BD-rate" not in browser.run("by('summary').textContent") and browser.run("by('speed').hidden")


def test_a_report_without_a_point_opens(chrome, tmp_path):
    codec = rival_codec("jpeg", [50])
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [("broken", tmp_path / "broken.png")]
    write_report(tmp_path, run([codec], images, tmp_path), images, [codec])
    chrome.messages.clear()
    chrome.open(tmp_path / "report.html")
    text = chrome.run("document.body.innerText")
    assert "nothing to compare" in text and "jpeg: broken: UnidentifiedImageError" in text
    assert chrome.messages == []


def test_bd_rates_name_their_anchor_range_and_what_has_none(browser):
    text = browser.run("by('rates').innerText")
    assert "BD-rate against jpeg" in text and "29 to 37 dB" in text and "PCHIP" in text and "−12.3 %" in text
    assert f"No BD-rate of webp: {PERCENT['webp']}." in text
    assert browser.run("by('speed-encoding').querySelectorAll('path').length") == 3


def test_it_fits_narrow_windows_without_overlaps_or_shifts(browser, evaluation):
    for width in (1280, 400):
        browser.size(width, 800)
        browser.media(prefers_color_scheme="dark")
        browser.open(evaluation[0] / "report.html")
        settle(browser)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        boxes = browser.run(
            "[...document.querySelectorAll('.speed')].map((figure) => [...figure.querySelectorAll('text')]"
            ".map((t) => t.getBoundingClientRect()).map(({left, top, right, bottom}) => [left, top, right, bottom]))"
        )
        for figure in boxes:
            for i, (left, top, right, bottom) in enumerate(figure):
                for other in figure[:i]:
                    assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]
        shifts = browser.run(
            "new Promise((done) => { new PerformanceObserver((l) => done(l.getEntries().map((e) => e.value)))"
            ".observe({type: 'layout-shift', buffered: true}); setTimeout(() => done([]), 100); })"
        )
        assert sum(shifts) < 0.01


def test_every_control_has_a_name_and_can_be_reached_by_keys(browser):
    unnamed = browser.run(
        "[...document.querySelectorAll('button, input, select, [tabindex]')].filter((control) =>"
        " !(control.ariaLabel || control.textContent.trim() || control.labels?.[0]?.textContent.trim()))"
        ".map((control) => control.outerHTML)"
    )
    assert unnamed == []
    browser.run("document.body.focus()")
    reached = set()
    for _ in range(60):
        browser.key("Tab")
        reached.add(browser.run("document.activeElement.id || document.activeElement.name || ''"))
    assert {"plot", "metric", "slider", "stage", "image", "target", "a", "b", "zoom", "view"} <= reached
