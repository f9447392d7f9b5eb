"""The report holds the pictures that were measured, and no name in it becomes markup."""

import base64
import hashlib
import html.parser
import io
import json

import numpy as np
from PIL import Image
from reported import HOSTILE, element

from codec.evaluation import plot, report


def picture(page, n):
    """The bytes of an embedded picture."""
    return base64.b64decode(element(page, f"picture-{n}").partition(";base64,")[2])


def test_no_name_becomes_markup_and_nothing_is_fetched(page):
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert not [tag for tag, _ in tags if tag in ("img", "b", "link", "iframe")]
    pictures = [a["id"] for tag, a in tags if tag == "script" and a.get("id", "").startswith("picture-")]
    assert len([tag for tag, _ in tags if tag == "script"]) == len(pictures) + 2
    assert all(a["href"].startswith("#") for _, a in tags if "href" in a) and not any("src" in a for _, a in tags)
    assert json.loads(element(page, "data"))["pictures"]["images"][1]["name"] == HOSTILE
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_embedded_pictures_are_those_of_the_files(evaluation, page):
    folder, results, images, codecs = evaluation
    shown = json.loads(element(page, "data"))["pictures"]["images"]
    decode = {codec.name: codec.decode for codec in codecs}
    rows = {(r.name, row.image, row.quality): row for r in results for row in r.rows}
    assert [image["name"] for image in shown] == [name for name, _ in images]
    for about, (name, image) in zip(shown, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture(page, about["original"])))), np.asarray(image))
        assert {file["codec"] for file in about["files"]} == set(decode)
        for file in about["files"]:
            row, data = rows[file["codec"], name, file["quality"]], picture(page, file["picture"])
            assert (file["bytes"], file["psnr"]) == (row.bytes, row.psnr)
            measured = (folder / row.file).read_bytes()
            if file["codec"] != "lic":
                assert data == measured
            else:
                decoded = np.asarray(decode["lic"](measured))
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), decoded)


def test_a_large_evaluation_is_shown_in_part_and_the_page_says_so(evaluation, tmp_path, monkeypatch):
    folder, results, images, codecs = evaluation
    documents = [json.loads(result.to_json()) for result in results]
    monkeypatch.setattr(report, "LIMIT", 1)
    monkeypatch.setattr(report, "CROP", (120, 90))
    note, shown, uris = report.pictures(folder, documents, images, {codec.name: codec for codec in codecs})
    assert len(shown) == 1 and "1 of 2 images" in note and "the middle is shown, 120x90 pixels" in note
    assert all(uri.startswith("data:image/webp") for uri in uris)
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in uris}
    assert sizes == {(120, 90)}
    for document in documents:
        document["images"] = []
    assert "nothing to compare" in report.pictures(folder, documents, images, {})[0]


def test_curves_have_the_style_of_the_plots_and_only_finite_points(page):
    curves = json.loads(element(page, "data"))["curves"]
    assert [curve["name"] for curve in curves] == ["lic", "jpeg", "webp", "avif", "vtm"]
    assert [curve["colour"] for curve in curves] == list(plot.COLOURS[:5])
    assert [curve["marker"] for curve in curves] == list(plot.MARKERS[:5])
    assert [(point["bpp"], point["psnr"]) for point in curves[4]["points"]] == [(0.1, 28.0), (0.9, 36.0)]
    script = (report.PAGE / "charts.js").read_text()
    assert all(f"\n  {marker}: " in script or f'\n  "{marker}": ' in script for marker in plot.MARKERS)
