"""The browser's bars, measured in Chromium: ``python -m benchmarks.browse RUN [--check] [--out FILE]``.

``RUN`` is a folder with the checkpoint of a TIDE on the bundled pipeline, such as ``runs/demo-fast``; an index of it is
made in a copy. What is measured at size runs on an index of 73,728 latents and 10,000 images whose content is random.
``--check`` ends with status 1 where a bar is missed, a noisy one by a factor of 4. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

from benchmarks.synthetic_index import synthetic_index
from benchmarks.table import markdown
from tide.files import write_json
from tide.index import index_of
from tide.provenance import machine, versions

#: Figure -> (the bar, whether the figure is at most or at least that).
BARS: dict[str, tuple[float, str]] = {
    "first paint, s": (1.0, "at most"),
    "frames a second": (50.0, "at least"),
    "longest blank card, ms": (200.0, "at most"),
    "text search, ms": (100.0, "at most"),
    "a latent's page, ms": (300.0, "at most"),
    "memory of the server, MB": (500.0, "at most"),
    "index of 3072 latents and 512 images, s": (60.0, "at most"),
    "first preview, s": (1.0, "at most"),
    "last image over warm Python": (1.2, "at most"),
    "durations of a step after a cancel": (1.0, "at most"),
    "images that differ from the copied code": (0.0, "at most"),
    "axe violations": (0.0, "at most"),
    "console errors": (0.0, "at most"),
}
PROMPT = "a plain new red house, facing left, near, on grass, with a shadow"
ROUNDS = 5
#: By how much a duration, a rate or a ratio of durations may miss its bar before ``--check`` fails: a machine differs
#: as much from day to day (benchmarks/NOTES.md). Counts and bytes have none of it.
SLACK = 4.0
NOISY = (", s", ", ms", "frames a second", "over warm Python", "after a cancel")
#: What must never be: here the worst round counts and not the median.
NEVER = ("blank card, ms", "after a cancel", "copied code", "violations", "errors", ", MB")


@contextmanager
def served(*arguments: str | Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of ``tide browse`` with these arguments, and its process."""
    words = [sys.executable, "-m", "tide", "browse", *map(str, arguments), "--no-open"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            words, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"Browse at (\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"tide browse did not start: {log.read_text()}")
            time.sleep(0.05)
        yield found[1], process
    finally:
        process.terminate()
        process.wait(timeout=20)


def chromium_path(playwright: Any) -> str | None:
    """The Chromium of this machine: its system's, else the one that Playwright has fetched, if it has."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    fetched = str(playwright.chromium.executable_path)
    return fetched if Path(fetched).exists() else None


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser.

    Raises:
        FileNotFoundError: there is none on this machine.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = chromium_path(playwright)
        if path is None:
            raise FileNotFoundError("no Chromium is installed: run `make chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def asked(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{address}{path}", data, {"content-type": "application/json"} if data else {})
    with urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def ready(address: str, run: str) -> None:
    while True:
        (found,) = (each for each in asked(address, "api/runs.json")["runs"] if each["id"] == run)
        if found["index"]["state"] == "ready":
            return
        if found["index"]["state"] in ("failed", "missing"):
            raise RuntimeError(found["index"]["message"])
        time.sleep(0.2)


PAINTED = """
() => new Promise((done) => {
  const look = () => document.querySelector('main h1') && document.querySelector('main .card')
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))) : setTimeout(look, 5);
  look();
})
"""

SCROLL = """
async (speed) => {
  const frames = [], blankSince = new Map();
  let longest = 0, last = performance.now();
  const look = (now) => {
    for (const item of document.querySelectorAll('.grid-item')) {
      const box = item.getBoundingClientRect();
      const seen = box.bottom > 60 && box.top < innerHeight;
      const card = item.querySelector('.card'), strip = item.querySelector('canvas.strip');
      const blank = seen && !(card?.dataset.ready === 'yes' && (!strip || strip.dataset.drawn === 'yes'));
      const key = card?.dataset.latent;
      if (!blank) { blankSince.delete(key); continue; }
      if (!blankSince.has(key)) blankSince.set(key, now);
      longest = Math.max(longest, now - blankSince.get(key));
    }
    const middle = (box) => box.top < innerHeight / 2 && box.bottom > innerHeight / 2 - 20;
    const covered = [...document.querySelectorAll('.grid-item')].some((item) => middle(item.getBoundingClientRect()));
    if (covered) { blankSince.delete('none'); return; }
    if (!blankSince.has('none')) blankSince.set('none', now);
    longest = Math.max(longest, now - blankSince.get('none'));
  };
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (let i = 0; i < 300; i++) {
    await frame();
    const now = performance.now();
    frames.push(now - last);
    last = now;
    scrollBy(0, speed);
    look(now);
  }
  // The scroll bar dragged to places far apart.
  for (let jump = 0; jump < 12; jump++) {
    scrollTo(0, (document.body.scrollHeight - innerHeight) * ((jump * 0.37) % 1));
    for (let i = 0; i < 30; i++) { await frame(); look(performance.now()); }
  }
  frames.shift();
  return { fps: 1000 * frames.length / frames.reduce((a, b) => a + b, 0), longest };
}
"""

SEARCH = """
(word) => new Promise((done) => {
  const field = document.getElementById('search'), count = () => document.querySelector('[data-count]').dataset.count;
  const before = count(), start = performance.now();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, word);
  field.dispatchEvent(new Event('input', { bubbles: true }));
  const look = () => {
    const now = count();
    if (now !== before && now !== '0') requestAnimationFrame(() => done(performance.now() - start));
    else if (performance.now() - start > 3000) done(3000);
    else setTimeout(look, 2);
  };
  look();
})
"""

OPENED = """
(latent) => new Promise((done) => {
  const start = performance.now();
  document.querySelector('.card').click();
  const there = () => document.querySelector('main.latent[data-latent] h2');
  const end = () => done(performance.now() - start);
  const look = () => there() ? requestAnimationFrame(end) : setTimeout(look, 2);
  look();
})
"""


def at_size(browser: Any, folder: Path) -> dict[str, Any]:
    """What is measured on 73,728 latents and 10,000 images."""
    run = folder / "big"
    synthetic_index(run)
    found: dict[str, Any] = {}
    with served(run, "--no-steering", log=folder / "big.log") as (address, process):
        paints = []
        for _ in range(ROUNDS):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.goto(address, wait_until="commit")
            paints.append(page.evaluate(PAINTED) / 1000)
            page.context.close()
        found["first paint, s"] = paints
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.goto(f"{address}?page=latents&run=big")
        page.wait_for_selector("canvas.strip[data-drawn=yes]")
        rolls = []  # the first of them while most pictures are still to be read
        for _ in range(ROUNDS):
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(300)
            rolls.append(page.evaluate(SCROLL, 40))
        found["frames a second"] = [each["fps"] for each in rolls]
        found["longest blank card, ms"] = [each["longest"] for each in rolls]
        page.evaluate("scrollTo(0, 0)")
        found["text search, ms"] = [
            page.evaluate(SEARCH, word) for word in ("roof", "snow wall", "fur", "edge sky", "ston")
        ]
        opened = []
        for sort in ("auroc", "monosemanticity", "strongest", "early", "late", "number"):
            page.goto(f"{address}?page=latents&run=big&sort={sort}")
            page.wait_for_selector("canvas.strip[data-drawn=yes]")
            opened.append(page.evaluate(OPENED, sort))
        found["a latent's page, ms"] = opened
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        found["memory of the server, MB"] = [int(peak[1]) / 1024]
        page.context.close()
    shutil.rmtree(run)
    return found


def recipe(seed: int, latent: int, by: float = 0.0) -> dict[str, Any]:
    change = {"latents": [latent], "how": "scale", "by": by}
    return {"prompt": PROMPT, "seed": seed, "n_steps": 20, "guidance_scale": 2.0, "changes": [change]}


def steering(browser: Any, run: Path, folder: Path) -> dict[str, Any]:
    """What is measured while images are drawn on the bundled pipeline."""
    import numpy as np

    import tide
    from tide.index import Index

    adapter = tide.load_adapter("scenes")
    model = tide.load_sae(run, adapter)
    columns = Index(run).columns()
    latent = int(np.argmax(columns["frequency"]))

    def plainly(seed: int) -> float:
        data = {**recipe(seed, latent), "format": "tide-recipe/1"}
        begun = time.perf_counter()
        tide.draw_recipe(adapter, model, tide.Recipe.from_dict(data))
        return time.perf_counter() - begun

    found: dict[str, Any] = {name: [] for name in ("first preview, s", "last image over warm Python")}
    with served(run, log=folder / "steer.log") as (address, _):
        ready(address, run.name)
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        for seed in range(ROUNDS + 1):
            page.goto(f"{address}?page=steer&run={run.name}&recipe={quote(json.dumps(recipe(seed, latent)))}")
            page.wait_for_selector("button.primary:not([disabled])")
            page.wait_for_timeout(500)
            first, last = page.evaluate(DRAWN)
            alone = plainly(seed)
            if seed:  # the first warms both
                found["first preview, s"].append(first / 1000)
                found["last image over warm Python"].append(last / 1000 / alone)
        found["durations of a step after a cancel"] = [_cancelled(address, run.name, latent, seed) for seed in range(3)]
        image = _pixels(page.get_attribute("img.after", "src"))
        found["images that differ from the copied code"] = [
            _differing(address, run.name, recipe(ROUNDS, latent), image, folder)
        ]
    return found


DRAWN = """
() => new Promise((done) => {
  const start = performance.now();
  let first = 0;
  document.querySelector('button.primary').click();
  const look = () => {
    if (!first && document.querySelector('.over img')) first = performance.now() - start;
    const after = document.querySelector('img.after[data-final=yes]');
    const idle = document.querySelector('.comparison[aria-busy=false]');
    if (after && after.complete && idle) done([first, performance.now() - start]);
    else setTimeout(look, 8);
  };
  look();
})
"""


def _cancelled(address: str, run: str, latent: int, seed: int) -> float:
    """From the answer to a cancel to the end of the drawing, in durations of its steps."""
    drawing = {"run": run, "recipe": {**recipe(100 + seed, latent), "n_steps": 200}, "page": "bars"}
    job = asked(address, "api/drawings", drawing)["job"]
    first = last = answered = 0.0
    with urlopen(f"{address}api/jobs/{job}/events", timeout=60) as events:
        for line in events:
            if not line.startswith(b"data: "):
                continue
            said, now = json.loads(line[6:]), time.perf_counter()
            if said["event"] == "step" and said["step"] == 1:
                first = now
            if said["event"] == "step" and said["step"] == 41:
                last = now
                asked(address, f"api/jobs/{job}/cancel", {})
                answered = time.perf_counter()
            if said["event"] == "cancelled":
                # What was told before the answer may be read after it; then the drawing had ended by then.
                return max(0.0, now - answered) * 40 / (last - first)
            if said["event"] in ("done", "failed"):
                return float("nan")
    return float("nan")


def _pixels(source: str) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def _differing(address: str, run: str, asked_for: dict[str, Any], image: Any, folder: Path) -> int:
    """How many of the images by the copied Python and by the copied command differ from the page's."""
    import numpy as np
    from PIL import Image

    code = asked(address, f"api/runs/{run}/code", asked_for)
    at = folder / "copied"
    at.mkdir()
    (at / "copied.py").write_text(code["python"])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "copied.py"], cwd=at, check=True, env=environment)
    subprocess.run(code["command"], shell=True, cwd=at, check=True, env=environment, stdout=subprocess.DEVNULL)
    drawn = [at / "after.png", *at.glob("runs/recipe/after*.png")]
    assert len(drawn) == 2, drawn
    return sum(not np.array_equal(np.asarray(Image.open(path)), image) for path in drawn)


PAGES = (
    "",
    "page=latents",
    "page=latent&latent={latent}",
    "page=image&image=1",
    "page=compare",
    "page=steer&recipe={recipe}",
)


def pages(browser: Any, run: Path, folder: Path) -> dict[str, Any]:
    """Violations of accessibility that axe finds, and errors on the console, on every page, light and dark, narrow and
    wide."""
    from axe_playwright_python.sync_playwright import Axe

    violations, errors = [], []
    shutil.rmtree(index_of(run), ignore_errors=True)  # runs are compared on the same images
    with served(run.parent, "--images", "64", log=folder / "pages.log") as (address, _):
        for each in asked(address, "api/runs.json")["runs"]:
            ready(address, each["id"])
        latent = asked(address, f"api/runs/{run.name}/facts.json")["concepts"]
        number = latent[0]["best"] if latent else 0
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (2560, "dark")):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            for query in PAGES:
                filled = query.format(latent=number, recipe=quote(json.dumps(recipe(0, number))))
                page.goto(f"{address}?run={run.name}&{filled}")
                page.wait_for_selector("main h1")
                page.wait_for_timeout(600)
                found = Axe().run(page).response["violations"]
                violations += [
                    f"{width} {scheme} {query}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found
                ]
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    violations.append(f"{width} {scheme} {query}: wider than the screen")
            page.context.close()
    for line in violations + errors:
        print(line, file=sys.stderr)
    return {"axe violations": [len(violations)], "console errors": [len(errors)]}


def indexed(run: Path) -> dict[str, Any]:
    """Makes the index of 512 images."""
    import tide
    from tide.index import build_index

    adapter = tide.load_adapter("scenes")
    model = tide.load_sae(run, adapter)
    begun = time.perf_counter()
    build_index(adapter, model, tide.open_source("scenes", adapter, images=512, scene_split="test"), run)
    seconds = time.perf_counter() - begun
    return {"index of 3072 latents and 512 images, s": [seconds if model.n_latents == 3072 else float("nan")]}


def figures(found: dict[str, list[float]]) -> dict[str, Any]:
    return {name: {"median": statistics.median(each), "rounds": sorted(each)} for name, each in found.items()}


def counted(name: str, each: dict[str, Any]) -> float:
    """The figure that is compared with the bar."""
    return float(each["rounds"][-1] if name.endswith(NEVER) else each["median"])


def page(found: dict[str, Any]) -> str:
    """The table of docs/browse.md."""
    rows = []
    for name, each in found.items():
        bar, kind = BARS[name]
        low, high = (f"{value:.3g}" for value in (each["rounds"][0], each["rounds"][-1]))
        spread = low if low == high else f"{low} to {high}"
        rows.append([name, f"{counted(name, each):.3g}", spread, f"{kind} {bar:g}"])
    return markdown(("figure", "measured", "rounds", "aim"), rows)


def missed(found: dict[str, Any], slack: float = 1.0) -> list[str]:
    """The bars that are missed, in words; noisy ones by more than ``slack``."""
    lines = []
    for name, each in found.items():
        bar, kind = BARS[name]
        allowed, value = slack if name.endswith(NOISY) else 1.0, counted(name, each)
        if not (value <= bar * allowed if kind == "at most" else value >= bar / allowed):
            lines.append(f"{name}: {value:.3g}, {kind} {bar:g} asked for")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", choices=("size", "index", "steering", "pages"), nargs="*")
    parser.add_argument("--out", type=Path)
    asked_for = parser.parse_args()
    source = asked_for.run / "tide" if (asked_for.run / "tide").is_dir() else asked_for.run
    parts: dict[str, Callable[[Any, Path, Path], dict[str, Any]]] = {
        "index": lambda browser, run, folder: indexed(run),
        "size": lambda browser, run, folder: at_size(browser, folder),
        "steering": steering,
        "pages": pages,
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        folder = Path(temporary)
        run = folder / "runs" / "tide"
        shutil.copytree(source, run, ignore=shutil.ignore_patterns("resume", "tensorboard"))
        if (source.parent / "sae").is_dir():
            shutil.copytree(
                source.parent / "sae", folder / "runs" / "sae", ignore=shutil.ignore_patterns("resume", "index*")
            )
        for name, part in parts.items():
            if not asked_for.only or name in asked_for.only:
                found |= part(browser, run, folder)
                print(json.dumps({each: found[each] for each in found}), file=sys.stderr)
    result = {"machine": {**machine(), "packages": versions()}, "figures": figures(found)}
    print(json.dumps(result, indent=2))
    if asked_for.out:
        write_json(asked_for.out, result)
    for line in missed(result["figures"]):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if asked_for.check and missed(result["figures"], SLACK) else 0


if __name__ == "__main__":
    sys.exit(main())
