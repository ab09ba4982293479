"""The page of python -m jaxcls.serve in a browser, where there is one."""

import base64
import shutil

import pytest
import served
from test_predict import CLASSES, store
from test_serve import LIMITS, picture

from jaxcls import predictor
from jaxcls.serve.app import Server

pytestmark = pytest.mark.ci
CHROME = ("chromium", "chromium-browser", "google-chrome")
DROP = """([data, name, type]) => {
  const file = new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, { type });
  const dropped = new DataTransfer();
  dropped.items.add(file);
  const event = new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(event);
}"""
MAP = "figure:nth-of-type(2) img"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    one = predictor.load(store(folder / "one"), batch_size=1)
    two = predictor.load(store(folder / "two", seed=1, thresholds=(1.0,)), batch_size=1)
    server = Server({"one": one, "two": two}, LIMITS)
    with served.in_thread(server) as server.address:
        yield server


@pytest.fixture
def page(server):
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, CHROME)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(str(error).splitlines()[0])
        page = browser.new_page(viewport={"width": 360, "height": 700})
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda said: page.errors.append(said.text))
        host, port = server.address
        page.goto(f"http://{host}:{port}/")
        yield page
        assert not page.errors
        assert all(url.startswith((f"http://{host}:{port}/", "blob:")) for url in page.asked)
        browser.close()


def expected(server, name, data):
    [answer] = server.models[name].predictor.predict(data)
    return [f"{kind}{100 * p:.1f} %" for kind, p in zip(answer.classes, answer.probabilities)]


def bars(page):
    return [text.replace("\n", "") for text in page.locator("li").all_inner_texts()]


def test_an_image_is_dropped(server, page):
    data = picture(1, kind="JPEG")
    page.evaluate(DROP, [base64.b64encode(data).decode(), "<b>x.jpg", "image/jpeg"])
    page.wait_for_selector(MAP)
    assert bars(page) == expected(server, "one", data)
    assert len(bars(page)) == len(CLASSES)
    assert page.locator("figcaption").first.inner_text() == "<b>x.jpg"
    natural = "[...document.images].map(image => image.naturalWidth)"
    assert page.evaluate(natural) == [64, 224]
    page.select_option("#model", "two")  # the same image, by another
    page.locator("p").wait_for()
    page.wait_for_selector(MAP)
    assert bars(page) == expected(server, "two", data)
    assert page.locator("p").inner_text() == "Decision: none of these"
    wider = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wider)  # on a telephone


def test_a_file_is_chosen_with_the_keyboard(server, page, tmp_path):
    (tmp_path / "x.png").write_bytes(picture(2))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(tmp_path / "x.png")
    page.wait_for_selector(MAP)
    assert bars(page) == expected(server, "one", picture(2))


def test_what_is_no_image_is_told(page):
    page.evaluate(DROP, [base64.b64encode(b"x" * 99).decode(), "x.png", "image/png"])
    page.wait_for_selector(".error")
    assert page.locator(".error").inner_text().startswith("cannot decode the image")
    assert page.locator("img").count() == 0
    [error] = page.errors  # the browser's own, of the status
    assert "400" in error
    page.errors.clear()
