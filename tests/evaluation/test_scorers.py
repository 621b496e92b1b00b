"""Scorers, offline: CLIP of a tiny model from disk, LPIPS and FID against their formulas in float64.

torchvision cannot be installed beside the torch of these tests. LPIPS runs here as torchmetrics has it, over a stand-in
that has AlexNet's layers and loads weights as torchvision does; tests of the real networks are skipped without it.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import shutil
import socket
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_clip import LONGEST, save_tiny_clip
from torch import nn

import tide.evaluation
from tide.commands.common import to_image
from tide.errors import TideError
from tide.evaluation.scorers import CLIPScorer, FIDScorer, LPIPSScorer, StubScorer, check_images, lpips

pytest.importorskip("torchmetrics", reason="torchmetrics is in the extras dev and scores")
# Before a test puts a stand-in for torchvision where torchmetrics would look whether there is one.
import torchmetrics.functional.image.lpips
import torchmetrics.image.lpip
from torchmetrics.multimodal import CLIPScore

NEEDS_TORCHVISION = "needs torchvision, whose wheels on PyPI do not run beside torch's CPU wheel"
TEXTS = ["a red house", "two cones", "snow"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any look-up of a host or connection fails, and fails the test even where its error is caught."""
    tried = []

    def refuse(*args: object, **kwargs: object) -> None:
        tried.append(args)
        raise OSError("tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not tried


def random_images(n: int = 3, size: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class _Finder:
    """Importing ``name`` raises ``error``."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == self.name:
            raise self.error


@pytest.fixture
def without(monkeypatch):
    """Makes importing a package fail: it is not installed, or it is and breaks."""

    def block(name: str, error: Exception | None = None) -> None:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        error = error or ModuleNotFoundError(f"No module named {name!r}", name=name)
        monkeypatch.setattr(sys, "meta_path", [_Finder(name, error), *sys.meta_path])

    return block


def test_importing_scorers_imports_no_library(without, monkeypatch):
    for name in ("torchmetrics", "torchvision", "transformers"):
        without(name)
    for module in [m for m in sys.modules if m.startswith("tide.evaluation.scorers")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(tide.evaluation, "scorers", None)  # so that the import below is undone
    assert importlib.import_module("tide.evaluation.scorers").StubScorer is not StubScorer


# -- what scorers are given -----------------------------------------------------------------------------------


def test_check_images_returns_float32():
    images = random_images().half()
    assert torch.equal(check_images(images), images.float())
    edge = torch.tensor([-1.0, 1.0]).expand(1, 3, 2, 2)
    assert torch.equal(check_images(edge), edge)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"images are \[3, 8, 8\]; give \[B, 3, H, W\], at least one"),
        (torch.zeros(2, 4, 8, 8), r"images are \[2, 4, 8, 8\]; give"),
        (torch.zeros(0, 3, 8, 8), r"images are \[0, 3, 8, 8\]; give"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "images are torch.uint8; give floating point in"),
        (torch.full((1, 3, 8, 8), 1.5), r"images reach from 1.5 to 1.5; clamp what was decoded to \[-1, 1\]"),
        (torch.full((1, 3, 8, 8), torch.nan), "images hold NaN or infinity; check what drew them"),
        (torch.full((1, 3, 8, 8), -torch.inf), "images hold NaN or infinity; check what drew them"),
    ],
    ids=["one image", "four channels", "none", "bytes", "out of range", "NaN", "infinity"],
)
def test_images_that_no_scorer_takes(images, message):
    for use in (check_images, StubScorer().embed_images, lambda x: StubScorer().similarity(x, ["a"] * len(x))):
        with pytest.raises(TideError, match=message):
            use(images)


def test_texts_that_no_scorer_takes():
    for texts in ("house", []):
        with pytest.raises(TideError, match=r"texts are a list of at least one; give \[text\] for a single one"):
            StubScorer().embed_texts(texts)
    with pytest.raises(TideError, match="3 images need as many texts, not 1; repeat a text they share"):
        StubScorer().similarity(random_images(), ["house"])


# -- the stub -------------------------------------------------------------------------------------------------


def test_stub():
    scorer, images = StubScorer(), random_images()
    embedded, texts = scorer.embed_images(images), scorer.embed_texts(TEXTS)
    assert embedded.shape == texts.shape == (3, 32)
    assert torch.equal(embedded, StubScorer().embed_images(images))
    assert torch.equal(texts, StubScorer().embed_texts(TEXTS))
    assert len({tuple(row.tolist()) for row in (*embedded, *texts)}) == 6
    # From a hash of the word that is the same in every process.
    assert float(scorer.embed_texts(["house"])[0, 0]) == pytest.approx(-0.747112, rel=1e-5)
    expected = torch.cosine_similarity(embedded, texts)
    torch.testing.assert_close(scorer.similarity(images, TEXTS), expected)
    assert scorer.distance(images, images).tolist() == [0, 0, 0]
    other = random_images(seed=1)
    assert scorer.distance(images, other)[1] == pytest.approx(float((images[1] - other[1]).square().mean()))
    assert scorer.provenance["model"] == "none: a stub"
    assert scorer.provenance["versions"] == {"torch": torch.__version__}


# -- CLIP -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder) -> CLIPScorer:
    return CLIPScorer(clip_folder)


def test_clip_embeds_what_transformers_does(clip):
    """Of the images as they are saved."""
    images = random_images()
    files: list[Image.Image] = [to_image(image) for image in images]
    inputs = clip.processor(text=TEXTS, images=files, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = clip.model(**inputs)
    embedded, texts = clip.embed_images(images), clip.embed_texts(TEXTS)
    assert embedded.shape == texts.shape == (3, 12)
    assert embedded.dtype == torch.float32
    for ours, theirs in ((embedded, found.image_embeds), (texts, found.text_embeds)):
        torch.testing.assert_close(nn.functional.normalize(ours), nn.functional.normalize(theirs))
        assert not torch.allclose(ours.norm(dim=1), torch.ones(3), rtol=0.01)
    expected = (found.image_embeds * found.text_embeds).sum(1)
    torch.testing.assert_close(clip.similarity(images, TEXTS), expected)


def test_clip_does_not_depend_on_the_batch(clip):
    images = random_images()
    alone = [clip.similarity(images[i : i + 1], TEXTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(clip.similarity(images, TEXTS), torch.cat(alone))


class _Clip4:
    """As in transformers 4, whose features torchmetrics 1.9 takes: they are a tensor."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.config = model, model.config

    def to(self, device: torch.device) -> _Clip4:
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.model.get_image_features(pixels)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.model.get_text_features(ids, mask)
        return getattr(found, "pooler_output", found)


@pytest.mark.parametrize("sign", [1, -1], ids=["above 0", "below 0"])
def test_clip_score_of_torchmetrics(clip, sign):
    """max(100 m, 0) of the mean similarity m; for one below 0, of the pairs that are."""
    images = random_images(8).repeat_interleave(3, 0)
    texts = TEXTS * 8
    similarity = clip.similarity(images, texts)
    chosen = (similarity * sign > 0).nonzero()[:, 0].tolist()
    assert chosen
    metric = CLIPScore(lambda: (_Clip4(clip.model), clip.processor))
    pixels = ((images[chosen] + 1) * 127.5).round().byte()
    metric.update(list(pixels), [texts[i] for i in chosen])
    expected = max(100 * float(similarity[chosen].mean()), 0)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_clip_cuts_a_long_text(clip):
    read = LONGEST - 2  # start and end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = clip.embed_texts(["x" * read])
    with pytest.warns(UserWarning, match=f"a text of {LONGEST + 5} tokens is cut to the {LONGEST} that CLIP reads"):
        cut = clip.embed_texts(["x " * read + "house"])
    assert cut.shape == whole.shape
    same = clip.embed_texts(["x " * read])
    torch.testing.assert_close(cut, same)


def test_clip_provenance(clip, clip_folder):
    stated = clip.provenance
    weights = (clip_folder / "model.safetensors").read_bytes()
    assert stated["sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert (stated["scorer"], stated["model"], stated["weights"]) == ("CLIPScorer", "CLIPModel", str(clip_folder))
    assert stated["processor"].startswith("CLIPImageProcessor")
    assert list(stated["versions"]) == ["torch", "transformers"]


def test_clip_folders_that_cannot_serve(clip_folder, tmp_path):
    needed = "give the folder of a CLIP model as transformers saves it"
    with pytest.raises(TideError, match=rf"openai/clip-vit-large-patch14 is not a folder; {needed} .* \(nothing is"):
        CLIPScorer("openai/clip-vit-large-patch14")
    with pytest.raises(TideError, match=r"config\.json does not exist; check the path"):
        CLIPScorer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(TideError, match=f"{tmp_path} holds a model of type 'siglip', not 'clip'; {needed}"):
        CLIPScorer(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        copy = shutil.copytree(clip_folder, tmp_path / name)
        (copy / name).write_bytes(b"no weights")
        with pytest.raises(TideError, match=rf"{copy} could not be loaded \(.*\); {needed}") as caught:
            CLIPScorer(copy)
        assert "\n" not in str(caught.value)


def test_clip_without_some_of_its_weights(clip_folder, tmp_path):
    """transformers would draw them at random."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    tensors = load_file(copy / "model.safetensors")
    del tensors["text_projection.weight"], tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(TideError, match=f"{copy} lacks 2 weights, such as text_projection.weight; give the folder"):
        CLIPScorer(copy)


# -- LPIPS ----------------------------------------------------------------------------------------------------


def alexnet_features() -> nn.Sequential:
    """As in torchvision."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(3, 2),
    )  # fmt: skip


class _AlexNet(nn.Module):
    """Loads as torchvision's does: from the hub's folder, or else by a download."""

    def __init__(self, weights: SimpleNamespace) -> None:
        super().__init__()
        self.features = alexnet_features()
        self.load_state_dict(torch.hub.load_state_dict_from_url(weights.url, check_hash=True))


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    """Random weights of AlexNet, in a file of a name of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = alexnet_features()
    path = tmp_path_factory.mktemp("alexnet") / "mine.pth"
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


@pytest.fixture
def torchvision_with(monkeypatch):
    """Has a stand-in for torchvision expect this file's contents, under the name it returns."""

    def install(path: Path) -> str:
        name = f"alexnet-owt-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
        weights = SimpleNamespace(DEFAULT=SimpleNamespace(url=f"https://download.pytorch.org/models/{name}"))
        models = SimpleNamespace(
            get_model_weights={"alexnet": weights}.__getitem__, AlexNet_Weights=weights, alexnet=_AlexNet
        )
        module = ModuleType("torchvision")
        module.models = models
        monkeypatch.setitem(sys.modules, "torchvision", module)
        for user in (torchmetrics.image.lpip, torchmetrics.functional.image.lpips):
            monkeypatch.setattr(user, "_TORCHVISION_AVAILABLE", True)
        monkeypatch.setitem(lpips.FILES, "alex", ("alexnet", name))
        return name

    return install


def lpips_by_hand(path: Path, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In float64: the sum over layers of the mean over places of sum_c w_c (f_a - f_b)_c^2, each f of unit length."""
    weights = torch.load(path)
    features = alexnet_features().double()
    features.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    linear = torch.load(Path(torchmetrics.functional.image.lpips.__file__).parent / "lpips_models/alex.pth", "cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188]).double()[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).double()[:, None, None]
    total, layer = torch.zeros(len(a), dtype=torch.float64), 0
    x = [(images.double() - shift) / scale for images in (a, b)]
    for module in features[:-1]:  # the last pooling has no part in it
        with torch.no_grad():
            x = [module(each) for each in x]
        if isinstance(module, nn.ReLU):
            unit = [each / (each.square().sum(1, keepdim=True) + 1e-8).sqrt() for each in x]
            total += (linear[f"lin{layer}.model.1.weight"].double() * (unit[0] - unit[1]).square()).sum(1).mean((1, 2))
            layer += 1
    assert layer == 5
    return total


def test_lpips_is_its_formula_with_the_weights_of_the_file(alexnet, torchvision_with):
    torchvision_with(alexnet)
    scorer = LPIPSScorer(alexnet)
    a, b = random_images(), (random_images() + 0.3 * random_images(seed=1)).clamp(-1, 1)
    found = scorer.distance(a, b)
    torch.testing.assert_close(found.double(), lpips_by_hand(alexnet, a, b), rtol=1e-4, atol=1e-7)
    assert found.shape == (3,)
    assert (found > 0).all()
    assert scorer.distance(a[:1], a[:1]).tolist() == [0]  # a batch of one keeps its dimension
    torch.testing.assert_close(scorer.distance(a[1:2], b[1:2]), found[1:2])
    assert not scorer.metric.all_scores


def test_lpips_provenance(alexnet, torchvision_with):
    torchvision_with(alexnet)
    stated = LPIPSScorer(alexnet).provenance
    assert (stated["scorer"], stated["model"]) == ("LPIPSScorer", "LPIPS alex")
    assert stated["weights"] == str(alexnet)
    assert stated["sha256"] == hashlib.sha256(alexnet.read_bytes()).hexdigest()
    assert stated["versions"]["torchmetrics"] == torchmetrics.__version__
    assert list(stated["versions"]) == ["torch", "torchmetrics", "torchvision"]


def test_lpips_lends_torch_hub_a_folder_and_gives_it_back(alexnet, torchvision_with, monkeypatch, tmp_path):
    name = torchvision_with(alexnet)
    torch.hub.set_dir(tmp_path / "hub")
    monkeypatch.setattr(torch.hub, "_hub_dir", torch.hub.get_dir())
    seen = []

    def make(net: str, reduction: str, normalize: bool) -> nn.Module:
        hub = Path(torch.hub.get_dir())
        seen.append((net, reduction, normalize, hub))
        assert [file.name for file in hub.rglob("*") if file.is_file()] == [name]
        assert (hub / "checkpoints" / name).resolve() == alexnet
        if len(seen) == 2:
            raise RuntimeError("no")
        return nn.Identity()

    monkeypatch.setattr(torchmetrics.image.lpip, "LearnedPerceptualImagePatchSimilarity", make)
    LPIPSScorer(alexnet)
    with pytest.raises(RuntimeError, match="no"):
        LPIPSScorer(alexnet)
    assert [each[:3] for each in seen] == [("alex", "none", False)] * 2
    assert torch.hub.get_dir() == str(tmp_path / "hub")
    assert not any(hub.exists() for *_, hub in seen)
    assert not (tmp_path / "hub").exists()
    assert alexnet.is_file()


def test_lpips_files_that_cannot_serve(alexnet, tmp_path):
    expected = "one of torchvision's alexnet-owt-7be5be79.pth, vgg16-397923af.pth, squeezenet1_1-b8a52dc0.pth"
    path = tmp_path / "weights.pth"
    with pytest.raises(TideError, match=f"{path} does not exist; put {expected} there .nothing is downloaded"):
        LPIPSScorer(path)
    path.write_bytes(pickle.dumps(shutil.rmtree, protocol=2))
    with pytest.raises(TideError, match=f"{path} is not a readable file of weights .UnpicklingError.; give {expected}"):
        LPIPSScorer(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(TideError, match=f"{path} holds no 'features.0.weight'; give {expected}"):
        LPIPSScorer(path)
    digest = hashlib.sha256(alexnet.read_bytes()).hexdigest()[:8]
    with pytest.raises(TideError, match=f"{alexnet} has SHA-256 {digest}..., that of none known; give {expected}"):
        LPIPSScorer(alexnet)


def test_lpips_of_a_torchvision_with_other_weights(alexnet, torchvision_with, monkeypatch):
    """It would look for another file, and download it."""
    name = torchvision_with(alexnet)
    monkeypatch.setattr(sys.modules["torchvision"].models.AlexNet_Weights.DEFAULT, "url", "https://x.org/new.pth")
    with pytest.raises(
        TideError, match=f"this torchvision loads https://x.org/new.pth, and LPIPS is known with {name}"
    ):
        LPIPSScorer(alexnet)


def test_lpips_pairs_that_cannot_be_compared(alexnet, torchvision_with):
    torchvision_with(alexnet)
    scorer = LPIPSScorer(alexnet)
    with pytest.raises(TideError, match=r"images \[3, 3, 40, 40\] and references \[2, 3, 40, 40\] differ in shape"):
        scorer.distance(random_images(), random_images(2))
    with pytest.raises(TideError, match=r"images are \[1, 3, 31, 31\]; LPIPS needs at least 32 pixels a side"):
        scorer.distance(random_images(1, 31), random_images(1, 31))
    with pytest.raises(TideError, match="images reach from"):
        scorer.distance(random_images(), random_images() * 2)


def test_lpips_without_its_libraries(alexnet, torchvision_with, without):
    torchvision_with(alexnet)
    without("torchmetrics")
    with pytest.raises(TideError) as caught:
        LPIPSScorer(alexnet)
    assert str(caught.value) == 'LPIPS needs torchmetrics, which is not installed: pip install "tide-sae[scores]"'
    without("torchvision")
    with pytest.raises(TideError) as caught:
        LPIPSScorer(alexnet)
    assert str(caught.value) == 'LPIPS needs torchvision, which is not installed: pip install "tide-sae[scores]"'


def test_lpips_beside_a_torchvision_for_another_torch(alexnet, torchvision_with, without):
    torchvision_with(alexnet)
    without("torchvision", RuntimeError("operator torchvision::nms\n does not exist"))
    with pytest.raises(TideError) as caught:
        LPIPSScorer(alexnet)
    assert str(caught.value) == (
        "LPIPS needs torchvision, which cannot be imported (operator torchvision::nms does not exist); install the "
        f"builds of torchvision and of the rest that are made for torch {torch.__version__}: "
        'pip install "tide-sae[scores]"'
    )


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_of_the_real_networks(net, tmp_path, monkeypatch):
    """Random weights, under the name of their own SHA-256."""
    torchvision = pytest.importorskip("torchvision", reason=NEEDS_TORCHVISION)
    model, _ = lpips.FILES[net]
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.get_model(model, weights=None).state_dict(), path)
    name = f"{model}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setitem(lpips.FILES, net, (model, name))
    default = torchvision.models.get_model_weights(model).DEFAULT
    monkeypatch.setattr(default.value, "url", f"https://download.pytorch.org/models/{name}")
    scorer = LPIPSScorer(path)
    assert scorer.net == net
    a, b = random_images(2, lpips.SMALLEST), random_images(2, lpips.SMALLEST, seed=1)
    found = scorer.distance(a, b)
    assert (found > 0).all()
    if net == "alex":
        features = {name: value for name, value in torch.load(path).items() if name.startswith("features.")}
        torch.save(features, tmp_path / "features.pth")
        expected = lpips_by_hand(tmp_path / "features.pth", a, b)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


# -- FID ------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Six features of an image: a fixed projection of its 2 x 2 average, bent so that their means differ too."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(12, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) @ self.weight).exp()


def frechet(real: torch.Tensor, fake: torch.Tensor) -> float:
    """|m_r - m_f|^2 + tr(C_r + C_f - 2 (C_r^(1/2) C_f C_r^(1/2))^(1/2)), in float64, by symmetric square roots."""

    def root(c: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    real, fake = real.double(), fake.double()
    c_real, c_fake = real.T.cov(), fake.T.cov()
    half = root(c_real)
    between = (real.mean(0) - fake.mean(0)).square().sum()
    return float(between + (c_real + c_fake - 2 * root(half @ c_fake @ half)).trace())


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Unequal numbers, means and spreads, on few pixels so that averages vary."""
    return random_images(40, 4), 0.6 * random_images(31, 4, seed=1) + 0.3


@pytest.mark.parametrize("part", [40, 7, 1], ids=["at once", "in parts", "one by one"])
def test_fid_is_the_closed_form(part):
    real, fake = two_sets()
    scorer = FIDScorer(Features())
    for i, images in enumerate((*real.split(part), *fake.split(part))):
        scorer.update(images, real=i < len(real.split(part)))
    expected = frechet(Features()(real), Features()(fake))
    assert expected > 0.1
    assert scorer.compute() == pytest.approx(expected, rel=1e-5)


def test_fid_of_equal_sets_is_zero():
    real, _ = two_sets()
    scorer = FIDScorer(Features())
    scorer.update(real, real=True)
    scorer.update(real.flip(0), real=False)
    assert scorer.compute() == pytest.approx(0, abs=1e-5)


def test_fid_of_too_few_images():
    scorer = FIDScorer(Features())
    scorer.update(random_images(5, 4), real=True)
    for n in (0, 1):
        with pytest.raises(TideError) as caught:
            scorer.compute()
        assert str(caught.value) == f"FID needs at least 2 real and 2 fake images, not 5 and {n}; update with more"
        scorer.update(random_images(1, 4, seed=n), real=False)
    assert scorer.compute() > 0


def test_fid_of_images_that_do_not_fit():
    with pytest.raises(TideError, match="images reach from"):
        FIDScorer(Features()).update(torch.full((2, 3, 4, 4), 255.0), real=True)


def test_fid_of_a_module_that_does_not_tell_its_width():
    with pytest.raises(TideError, match="Flatten has no num_features; set it to the width of what it returns"):
        FIDScorer(nn.Flatten())


def test_fid_provenance():
    stated = FIDScorer(Features()).provenance
    assert (stated["scorer"], stated["model"], stated["weights"]) == ("FIDScorer", "Features", None)
    assert stated["versions"]["torchmetrics"] == torchmetrics.__version__


def test_fid_files_that_cannot_serve(tmp_path, alexnet):
    expected = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
    path = tmp_path / "inception.pth"
    with pytest.raises(TideError, match=f"{path} does not exist; put {expected} there .nothing is downloaded"):
        FIDScorer(path)
    with pytest.raises(TideError, match=f"{alexnet} holds no 'Conv2d_1a_3x3.conv.weight'; give {expected}"):
        FIDScorer(alexnet)


def test_fid_without_its_libraries(tmp_path, without):
    path = tmp_path / "inception.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, path)
    without("torch_fidelity")
    with pytest.raises(TideError) as caught:
        FIDScorer(path)
    assert str(caught.value) == 'FID needs torch_fidelity, which is not installed: pip install "tide-sae[scores]"'
    without("torchmetrics")
    with pytest.raises(TideError) as caught:
        FIDScorer(Features())
    assert str(caught.value) == 'FID needs torchmetrics, which is not installed: pip install "tide-sae[scores]"'


def test_fid_of_the_real_inception(tmp_path, monkeypatch):
    """Random weights."""
    pytest.importorskip("torchvision", reason=f"torch-fidelity {NEEDS_TORCHVISION}")
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is in the extra scores")
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        weights = inception.FeatureExtractorInceptionV3("x", ["2048"]).state_dict()
    torch.save(weights, tmp_path / "inception.pth")
    scorer = FIDScorer(tmp_path / "inception.pth")
    for i, images in enumerate((random_images(3), random_images(3, seed=1) * 0.5)):
        scorer.update(images, real=i == 0)
    assert scorer.compute() > 0
    assert scorer.provenance["model"] == "NoTrainInceptionV3"
    del weights["fc.bias"]
    torch.save(weights, tmp_path / "inception.pth")
    with pytest.raises(TideError, match=r"inception.pth does not fit Inception v3 \(.*fc.bias"):
        FIDScorer(tmp_path / "inception.pth")
