"""The report in a real browser: nothing is asked of a network, nothing is complained of, everything is there."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tasklora.report.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser is installed (looked for {', '.join(BROWSERS)})")

OF_A_RUN = {"scores", "loss-curves", "score-curves", "parameters", "up-projection-weights", "task-matrix-change"}
OF_A_RUN |= {"rows-drawn", "update-overlaps", "updates-per-layer", "task-matrix-distance"}
OF_A_COMPARISON = OF_A_RUN | {
    "differences",
    "delta-m",
    "delta-m-and-size",
    "score-and-size",
    "search",
    "training-time",
    "own-shares",
}


@pytest.fixture(scope="module")
def browser():
    """Return a headless browser that looks nothing up by itself."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["run", "comparison"])
def report(request, trained, compared, tmp_path_factory) -> tuple[Path, set[str]]:
    """Return a report and the figures that it must have."""
    target = tmp_path_factory.mktemp("report") / "report.html"
    source, figures = (trained.path, OF_A_RUN) if request.param == "run" else (compared.path, OF_A_COMPARISON)
    return write_report([source], target), figures


def opened(browser: Browser, path: Path, **options) -> tuple[Page, list[str], list[str]]:
    """Open a page; return it with what the console said and what was asked of elsewhere."""
    page = browser.new_page(**options)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, said, [url for url in asked if url != path.as_uri() and not url.startswith("data:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_quietly_and_every_figure_is_there(browser, report, scheme):
    path, figures = report
    page, said, asked = opened(browser, path, color_scheme=scheme)
    assert said == []
    assert asked == []
    assert {figure.get_attribute("id") for figure in page.locator("figure").all()} == {f"figure-{n}" for n in figures}
    for figure in page.locator("figure").all():
        box = figure.locator("svg").bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 80
        assert figure.locator("svg text").count() > 3  # text is text, not outlines
        assert len(figure.locator(".reading").inner_text()) > 60  # how to read it
    page.close()


def test_each_figures_data_can_be_had_as_json(browser, report):
    path, figures = report
    page, _, _ = opened(browser, path)
    for name in figures:
        link = page.locator(f"#figure-{name} .data a")
        head, _, content = link.get_attribute("href").partition(",")
        assert head == "data:application/json;base64"
        assert json.loads(base64.b64decode(content))
        assert link.get_attribute("download") == f"{name}.json"
    page.close()


def test_links_lead_to_their_sections_and_no_id_is_there_twice(browser, report):
    page, _, _ = opened(browser, report[0])
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    targets = [link.get_attribute("href").removeprefix("#") for link in page.locator("nav a").all()]
    assert len(targets) > 5
    assert set(targets) <= set(ids)
    page.close()


def test_light_and_dark_differ_in_colours_and_prints_are_light(browser, report):
    ink, surface = {}, {}
    page = None
    for mode in ("light", "dark", "print"):
        page, _, _ = opened(browser, report[0], color_scheme="dark" if mode == "dark" else "light")
        if mode == "print":
            page.emulate_media(media="print", color_scheme="dark")
        ink[mode] = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        surface[mode] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.close()
    assert surface["light"] == surface["print"] == "rgb(255, 255, 255)"
    assert surface["dark"] != surface["light"]
    assert ink["dark"] != ink["light"]


def test_a_click_sorts_a_table_and_a_second_one_turns_it_around(browser, compared, tmp_path):
    path = write_report([compared.path], tmp_path / "report.html")
    page, said, _ = opened(browser, path)
    table = page.locator("#table-methods table")
    for column, values in (
        (0, sorted((method.title for method in compared.results.methods), key=str.lower)),
        (1, [f"{mean:.3f}" for mean in sorted(method.average.mean for method in compared.results.methods)]),
    ):
        for order in (values, values[::-1]):
            table.locator("th button").nth(column).click()
            shown = [row.locator("td").nth(column).inner_text() for row in table.locator("tbody tr").all()]
            assert [cell.split(" (")[0].split(" ±")[0] for cell in shown] == order
    assert said == []
    page.close()


def test_on_a_narrow_screen_nothing_but_tables_and_figures_is_wider_than_the_page(browser, report):
    page, _, _ = opened(browser, report[0], viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.fixture(scope="module")
def dense_report(dense_runs, tmp_path_factory) -> Path:
    """Return a report of six dense methods."""
    return write_report(list(dense_runs.values()), tmp_path_factory.mktemp("dense_report") / "report.html")


OF_MAPS = """() => [...document.querySelectorAll("img.map")].map((map) => ({
    natural: [map.naturalWidth, map.naturalHeight], drawn: [map.clientWidth, map.clientHeight],
    rendering: getComputedStyle(map).imageRendering, alt: map.alt,
}))"""


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_maps_are_drawn_without_smoothing_at_a_whole_factor(browser, dense_report, width, scheme):
    page, said, asked = opened(browser, dense_report, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert (said, asked) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    maps = page.evaluate(OF_MAPS)
    assert len(maps) == 4 * (1 + 5 + 6 * 2 * 5)
    factor = 2 if width == 390 else 3
    for one in maps:
        assert one["natural"] == [64, 64]
        assert one["drawn"] == [64 * factor, 64 * factor]
        assert one["rendering"] == "pixelated"
        assert one["alt"]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    page.close()


def test_further_methods_unfold_and_columns_stand_below_each_other(browser, dense_report):
    page, _, _ = opened(browser, dense_report, viewport={"width": 1400, "height": 900})
    folded = page.locator("#pictures details").first
    inside = folded.locator("img.map").first
    assert not inside.is_visible()
    assert folded.locator("summary").inner_text() == "BitFit, one LoRA per task"
    folded.locator("summary").click()
    assert inside.is_visible()
    first = page.locator("#pictures .wide").first
    for table in first.locator("table").all():
        for row in table.locator("tr:has(img)").all():
            lefts = [box["x"] for picture in row.locator("td img.map").all() if (box := picture.bounding_box())]
            assert lefts[-5:] == pytest.approx([lefts[-5] + 200 * place for place in range(5)], abs=1)
    assert page.locator("nav a[href='#pictures']").count() == 1
    page.close()
