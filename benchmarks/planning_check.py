"""A plan of the bundled pipeline beside a real run: ``python -m benchmarks.planning_check``.

Plans with ``--machine here``, then collects from a folder of rendered scenes and trains from the store, and compares
the time of collection and of training. Rounds alternate, since other work on the machine slows both.
Writes ``benchmarks/results/planning-check-<date>.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median

import torch

from benchmarks.environment import environment
from benchmarks.table import RESULTS, markdown, write
from tide.activations import CollectOptions, collect_to_disk
from tide.data import open_source
from tide.loading import load_adapter
from tide.pictures import to_image
from tide.planning import Plan, plan
from tide.scenes import images_of, prompts
from tide.training import TrainConfig, from_stores, train

OPTIONS = CollectOptions(token_fraction=1 / 2)
CONFIG = TrainConfig(batch_tokens=512)
#: What a plan calls the parts of a real collection and training.
PARTS = {"collection": ("images", "encode", "forward", "write"), "training": ("training",)}


def planned(images: int, epochs: int) -> dict[str, float]:
    """Seconds of collection and training, from constants that are measured now."""
    found: Plan = plan("scenes", images=images, config=CONFIG, options=OPTIONS, epochs=epochs)
    seconds = found.ways[0].seconds
    return {what: sum(seconds[part] for part in parts) for what, parts in PARTS.items()}


def real(images: int, epochs: int, folder: Path) -> dict[str, float]:
    """Seconds of the same, without loading the pipeline."""
    pictures(images, folder / "pictures")
    adapter = load_adapter("scenes", device="cpu")
    source = open_source(folder / "pictures", adapter, batch_size=OPTIONS.batch_size)
    rows = images * OPTIONS.rows_per_image(64)
    config = TrainConfig(batch_tokens=CONFIG.batch_tokens, steps=epochs * rows // CONFIG.batch_tokens)

    def collect() -> None:
        collect_to_disk(adapter, source, folder / "store", options=OPTIONS, say=lambda text: None)

    def fit() -> None:
        train(from_stores([str(folder / "store")], config, open_pipeline=lambda name: adapter), folder / "tide")

    return {"collection": seconds(collect), "training": seconds(fit)}


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def pictures(n: int, folder: Path) -> None:
    """Rendered scenes as JPEG files, with captions."""
    folder.mkdir(parents=True)
    pairs = prompts("train", n, 0)
    for number, (image, (_, caption)) in enumerate(zip(images_of([scene for scene, _ in pairs]), pairs, strict=True)):
        to_image(image).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(caption)


def compared(images: int, epochs: int, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Of each round the seconds, planned and real."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append({"planned": planned(images, epochs), "real": real(images, epochs, Path(folder))})
    return found


def ratios(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Planned over real seconds: the median of the rounds, of each part and of their sum."""
    names = (*PARTS, "total")

    def ratio(each: dict[str, dict[str, float]], name: str) -> float:
        both = (sum(times.values()) if name == "total" else times[name] for times in (each["planned"], each["real"]))
        return next(both) / next(both)

    return {name: median(ratio(each, name) for each in rounds) for name in names}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning_check", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / f"planning-check-{date.today().isoformat()}.json")
    options = parser.parse_args(given)
    found = compared(options.images, options.epochs, options.rounds)
    off = ratios(found)
    sizes = {"images": options.images, "epochs": options.epochs}
    write(options.out, {**environment(torch.device("cpu")), **sizes, "rounds": found, "planned / real": off})
    rows = [
        [str(i), what, f"{each['planned'][what]:.1f}", f"{each['real'][what]:.1f}"]
        for i, each in enumerate(found)
        for what in PARTS
    ]
    print(markdown(["round", "part", "planned s", "real s"], rows))
    print("planned / real, median: " + ", ".join(f"{name} {value:.2f}" for name, value in off.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
