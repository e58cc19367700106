"""Tests the page in Chromium, as a person uses it. Screenshots are written to target/screens/."""

import json
import os
import shutil
import time

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

WIDTHS = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1280, 800)}


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "there is no chromium; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.wrong.append(message.text))
    page.goto(server)
    expect(page.locator("#model")).to_contain_text("embedded")
    yield page
    assert page.wrong == []
    context.close()


def draw(page, prompt, **settings):
    page.fill("#prompt", prompt)
    page.evaluate("document.getElementById('more').open = true")
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.click("#draw")


def until(page, expression, seconds=10):
    """Polls from outside the page: its security policy forbids the code that Playwright's waiting would run inside."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} does not come true"
        time.sleep(0.02)


# The fraction of the first mosaic's pixels that are drawn.
SHARE = """(() => { const c = document.querySelector('#pictures.forming canvas'); if (!c) return -1;
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
    for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4); })()"""


def hold_half(page):
    """Lets the next drawing halt when half of its tokens are shown, until `page.release()`."""
    page.evaluate("""() => { window.half = false; const shown = showTokens; const gate = new Promise(go => window.release = go);
        window.showTokens = (event) => { shown(event); window.half ||= event.done >= event.total / 2; };
        const all = events; window.events = async function* (response) {
            for await (const event of all(response)) { yield event; if (window.half) await gate; } }; }""")


def finished(page, n):
    expect(page.locator("#pictures .picture img")).to_have_count(n, timeout=60_000)


def test_prompt_draws_forming_then_finished_pictures(page, screens):
    page.fill("#prompt", "a sunflower")
    page.evaluate("$('seed').value = 3")
    page.click("#draw")
    forming = page.locator("#pictures.forming canvas")
    expect(forming).to_have_count(36)
    # Some cells of the first picture are filled and others are not.
    until(page, f"(share => share > 0.3 && share < 1)({SHARE})")
    page.screenshot(path=screens / "forming.png")
    finished(page, 9)
    scores = [float(text) for text in page.locator(".score b").all_inner_texts()]
    assert len(scores) == 9 and scores == sorted(scores, reverse=True)
    expect(page.locator(".score").first).to_contain_text("score")
    expect(page.locator("#status")).to_contain_text("9 pictures, the best score first. Seed")
    assert page.locator("#pictures").evaluate("e => getComputedStyle(e).gridTemplateColumns.split(' ').length") == 3
    last = page.locator(".picture").last.bounding_box()
    assert last["y"] + last["height"] <= 800, "nine pictures fit into the window"
    page.wait_for_timeout(800)
    page.screenshot(path=screens / "gallery-desktop.png")


def test_link_with_seed_draws_the_same_pictures(page, server, screens):
    draw(page, "a blue heart, glossy style", n=3, seed=11)
    finished(page, 3)
    first = page.locator(".picture img").first.get_attribute("src")
    page.locator(".picture").nth(1).click()
    expect(page.locator("#sheet")).to_be_visible()
    second = page.locator("#sheet-image").get_attribute("src")
    page.screenshot(path=screens / "one-picture.png")
    with page.expect_download() as download:
        page.click("#sheet-download")
    made = json.loads(Image.open(download.value.path()).text["tessera"])
    assert made["prompts"] == ["a blue heart, glossy style"] and made["seed"] == 11 and len(made["tokens"]) == 144
    page.click("#sheet-link")
    until(page, "location.hash.includes('seed=11')")
    link = page.url
    other = page.context.new_page()
    other.goto(link)
    finished(other, 3)
    assert other.locator(".picture img").first.get_attribute("src") == first
    assert other.locator(".picture.highlighted img").get_attribute("src") == second
    # A link of another model shows a message instead of drawing another picture.
    third = page.context.new_page()
    third.goto(link.replace("model=", "model=0"))
    expect(third.locator("#status")).to_contain_text("Another model")


def test_painted_mask_changes_only_painted_cells(page, screens):
    draw(page, "a cat, noto style", n=1, seed=4)
    finished(page, 1)
    before = page.evaluate("drawing.pictures[0].b64_json")
    page.locator(".picture").first.click()
    page.click("#sheet-paint")
    expect(page.locator("#mask")).to_be_focused()
    box = page.locator("#mask").bounding_box()
    at = lambda x, y: (box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    page.mouse.move(*at(0.3, 0.3))
    page.mouse.down()
    page.mouse.move(*at(0.7, 0.3), steps=12)
    page.mouse.move(*at(0.7, 0.6), steps=12)
    page.mouse.up()
    painted = page.evaluate("source.painted.flatMap((p, at) => p ? [at] : [])")
    assert 5 < len(painted) < 20
    page.screenshot(path=screens / "painting.png")
    draw(page, "a red apple", n=2)
    finished(page, 2)
    tokens = lambda b64: page.evaluate(
        "b64 => { const t = new TextDecoder('latin1').decode(Uint8Array.from(atob(b64), s => s.charCodeAt(0)));"
        "return JSON.parse(t.match(/\"tokens\":(\\[[0-9,]*\\])/)[1]) }", b64)
    original = tokens(before)
    for drawn in page.evaluate("drawing.pictures.map(p => p.b64_json)"):
        changed = [at for at, (a, b) in enumerate(zip(original, tokens(drawn))) if a != b]
        assert changed and set(changed) <= set(painted)


def test_fast_stroke_paints_every_cell_on_its_way(page, tmp_path):
    Image.new("RGB", (96, 96), "white").save(tmp_path / "white.png")
    page.set_input_files("#file", tmp_path / "white.png")
    page.click("[data-paint=none]")
    box = page.locator("#mask").bounding_box()
    at = lambda column, row: (box["x"] + box["width"] * (column + .5) / 12, box["y"] + box["height"] * (row + .5) / 12)
    page.mouse.move(*at(1, 3))
    page.mouse.down()
    page.mouse.move(*at(9, 3))  # a single event
    page.mouse.move(*at(9, 8))
    page.mouse.up()
    painted = page.evaluate("source.painted.flatMap((p, at) => p ? [at] : [])")
    assert painted == [3 * 12 + x for x in range(1, 10)] + [y * 12 + 9 for y in range(4, 9)]


def test_vary_and_finish_both_draw_at_once(page):
    for button, mode in [("#sheet-vary", "vary"), ("#sheet-finish", "paint")]:
        draw(page, "a red apple", n=2, tries=1)
        until(page, "drawing?.pictures.length === 2 && running === null")
        page.locator(".picture").first.click()
        page.click(button)
        until(page, "drawing.source !== null && drawing.pictures.length === 2 && running === null")
        assert page.evaluate("[drawing.prompt, drawing.source.mode]") == ["a red apple", mode]
        page.click("#drop-source")


def test_long_prompt_says_what_is_read(page):
    draw(page, "a RED apple and " * 20, n=1, tries=1)
    finished(page, 1)
    expect(page.locator("#notes")).to_contain_text("The prompt is too long. The model reads only up to “…")
    page.locator(".picture").first.click()
    expect(page.locator("#sheet-title")).to_have_text(("a RED apple and " * 20).strip())
    expect(page.locator("#sheet-facts")).to_contain_text("Read as")
    expect(page.locator("#sheet-facts")).to_contain_text("a red apple and a red apple")


def test_unknown_words_are_named_and_replaced(page):
    """The embedded model lists no words, so the test puts them into the answer."""
    words = json.dumps([{"word": "aplpe", "suggestion": "apple"}, {"word": "zorp", "suggestion": None}])

    def answer(route):
        response = route.fetch()
        named = "aplpe" in route.request.post_data
        route.fulfill(response=response, body=response.text().replace('"unknown_words":null', f'"unknown_words":{words if named else "[]"}'))

    page.route("**/v1/images/generations", answer)
    draw(page, "a red aplpe, zorp", n=1, tries=1)
    finished(page, 1)
    expect(page.locator("#notes li").nth(0)).to_contain_text("The model does not know the word “aplpe”.")
    expect(page.locator("#notes li").nth(1)).to_have_text("The model does not know the word “zorp”.")
    page.click("#notes button")
    expect(page.locator("#notes")).to_be_hidden()
    assert page.input_value("#prompt") == "a red apple, zorp"
    until(page, "running === null && drawing.prompt === 'a red apple, zorp'")


def test_uploaded_picture_is_finished_and_varied(page, screens, tmp_path):
    picture = Image.new("RGB", (300, 200), "white")
    picture.paste((200, 40, 40), (110, 40, 190, 160))
    picture.save(tmp_path / "half.png")
    page.set_input_files("#file", tmp_path / "half.png")
    expect(page.locator("#mask")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("middle square")
    draw(page, "a red apple", n=2)
    finished(page, 2)
    page.wait_for_timeout(800)  # until the animation has ended
    page.screenshot(path=screens / "finished-half.png")
    page.click("#mode-vary")
    draw(page, "a red apple", n=4)
    finished(page, 4)
    page.wait_for_timeout(800)
    page.screenshot(path=screens / "varied.png")
    page.locator(".picture").first.click()
    expect(page.locator("#sheet-link")).to_be_disabled()


def test_page_works_below_a_path(browser, below_a_path):
    page = browser.new_context().new_page()
    page.goto(below_a_path)
    expect(page.locator("#model")).to_contain_text("embedded")
    until(page, "tiles !== null")
    draw(page, "a red apple", n=1)
    finished(page, 1)
    page.locator(".picture").first.click()
    page.click("#sheet-vary")
    finished(page, 1)
    assert page.request.get(page.locator("footer a").evaluate("link => link.href")).ok
    page.context.close()


def test_dropped_file_is_loaded(page):
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(64, 64); canvas.getContext('2d').fillRect(0, 0, 40, 40);
        const data = new DataTransfer(); data.items.add(new File([await canvas.convertToBlob()], 'a.png', { type: 'image/png' }));
        window.dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true })); }""")
    expect(page.locator("#mask")).to_be_visible()


def test_page_works_by_keyboard(page):
    page.focus("#prompt")
    page.keyboard.type("a pizza")
    page.keyboard.press("Enter")
    finished(page, 9)
    page.locator(".picture").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#sheet")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#sheet")).to_be_hidden()
    page.evaluate("document.querySelector('.picture').click()")
    page.focus("#sheet-paint")
    page.keyboard.press("Enter")
    expect(page.locator("#mask")).to_be_focused()
    for key in ["ArrowRight", "ArrowDown", "Space", "ArrowDown", "Space"]:
        page.keyboard.press(key)
    assert page.evaluate("source.painted.flatMap((p, at) => p ? [at] : [])") == [13, 25]


def test_elements_have_names_for_screen_readers(page):
    draw(page, "a star", n=2)
    finished(page, 2)
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, textarea, canvas, img, a')]
        .filter(e => e.checkVisibility() && !e.closest('.forming'))
        .filter(e => !(e.innerText || e.ariaLabel || e.alt !== undefined && e.alt !== null && e.tagName === 'IMG'
            || e.labels?.length || e.querySelector?.('img[alt]:not([alt=""])'))).map(e => e.outerHTML)""")
    assert nameless == []


def test_identical_pictures_are_reported(page):
    draw(page, "a red apple", n=3, temperature=0)
    finished(page, 3)
    expect(page.locator("#notes")).to_have_text("All pictures are the same. Raise top-p or temperature for more variety.")
    draw(page, "a sunflower", n=3, temperature=1, top_p=1)
    finished(page, 3)
    expect(page.locator("#notes")).to_be_hidden()


def test_late_tiles_replace_plain_colours(page):
    until(page, "tiles !== null")
    page.evaluate("tiles = null")
    draw(page, "a tree", n=16, tries=16)
    until(page, "drawing?.tokens[0]?.length > 30")
    corner = "Math.min(...document.querySelector('.forming canvas').getContext('2d').getImageData(1, 1, 1, 1).data)"
    assert page.evaluate(corner) < 210, "a colour in place of a tile"
    page.evaluate("fetchTiles()")
    assert page.evaluate(corner) > 230, "the white tile of a background"
    page.click("#stop")
    expect(page.locator("#status")).to_have_text("Stopped.")


def test_stopping_frees_the_server(page):
    draw(page, "a tree", n=16, tries=16)
    expect(page.locator("#pictures.forming canvas").first).to_be_visible()
    page.click("#stop")
    expect(page.locator("#status")).to_have_text("Stopped.")
    until(page, "async () => (await (await fetch('/healthz')).json()).pending === 0")
    draw(page, "a tree", n=1, tries=1)
    finished(page, 1)


def test_history_restores_seed_and_settings(page):
    draw(page, "A moon,  flat style", n=2, tries=3, temperature=0.9, top_p=0.85, guidance=2.1, negative="red", seed=12)
    finished(page, 2)
    first = page.locator(".picture img").first.get_attribute("src")
    page.locator(".picture").first.click()
    page.click("#sheet-finish")
    until(page, "drawing.source !== null && running === null")
    second = page.locator(".picture img").first.get_attribute("src")
    page.reload()
    until(page, "model !== null")
    form = "Object.fromEntries([...SLIDERS, 'prompt', 'negative', 'seed'].map(id => [id, $(id).value]))"
    fresh = page.evaluate(form)
    page.locator(".past").last.click()
    expect(page.locator("#status")).to_contain_text("seed 12")
    expect(page.locator("#no-source")).to_be_visible()
    restored = {"n": "2", "tries": "3", "temperature": "0.9", "top_p": "0.85", "guidance": "2.1", "strength": "0.7",
                "prompt": "A moon,  flat style", "negative": "red", "seed": "12"}
    assert fresh != restored and page.evaluate(form) == restored
    page.locator(".past").first.click()
    expect(page.locator("#mask")).to_be_visible()
    assert page.evaluate("source.painted.filter(Boolean).length") == 72
    # Both draw the same again.
    page.click("#draw")
    until(page, "running === null && drawing.pictures.length === 2")
    assert page.locator(".picture img").first.get_attribute("src") == second
    page.locator(".past").last.click()
    page.click("#draw")
    until(page, "running === null && drawing.pictures.length === 2")
    assert page.locator(".picture img").first.get_attribute("src") == first


def test_history_stays_in_the_browser(page):
    draw(page, "a moon", n=1)
    finished(page, 1)
    expect(page.locator(".past")).to_have_count(1)
    page.reload()
    expect(page.locator(".past")).to_have_count(1)
    page.locator(".past").click()
    expect(page.locator(".picture img")).to_have_count(1)
    page.click("#clear-history")
    expect(page.locator(".past")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_every_width(browser, server, screens, width, scheme):
    size = dict(zip(("width", "height"), WIDTHS[width]))
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=width == "phone")
    page = context.new_page()
    page.goto(server)
    expect(page.locator("#model")).to_contain_text("embedded")
    until(page, "tiles !== null")
    page.screenshot(path=screens / f"{width}-{scheme}-empty.png", full_page=True)
    draw(page, "a sunflower", n=9, seed=3)
    finished(page, 9)
    page.wait_for_timeout(800)
    expect(page.locator(".picture img").first).to_be_in_viewport()
    page.screenshot(path=screens / f"{width}-{scheme}.png", full_page=True)
    page.locator(".picture").first.click()
    page.screenshot(path=screens / f"{width}-{scheme}-sheet.png")
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_half_formed_mosaic_is_in_view(browser, server, screens, width, scheme):
    size = dict(zip(("width", "height"), WIDTHS[width]))
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=width == "phone", device_scale_factor=1)
    page = context.new_page()
    page.goto(server)
    until(page, "tiles !== null")
    hold_half(page)
    page.fill("#prompt", "a sunflower")
    page.evaluate("$('n').value = 4; $('seed').value = 7")
    page.click("#draw")
    until(page, "window.half")
    expect(page.locator(".forming canvas").last).to_be_in_viewport()
    page.wait_for_timeout(400)  # until the page has scrolled
    page.screenshot(path=screens / f"{width}-{scheme}-forming.png")
    page.evaluate("release()")
    finished(page, 4)
    context.close()
