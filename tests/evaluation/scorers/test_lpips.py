"""LPIPS against its formula in float64.

torchvision cannot be installed beside the torch of these tests. LPIPS runs here as torchmetrics has it, over a stand-in
that has AlexNet's layers and loads weights as torchvision does; tests of the real networks are skipped without it.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from scorer_inputs import NEEDS_TORCHVISION, random_images
from torch import nn

from tide.errors import TideError
from tide.evaluation.scorers import LPIPSScorer, lpips

pytest.importorskip("torchmetrics", reason="torchmetrics is in the extras dev and scores")
# Before a test puts a stand-in for torchvision where torchmetrics would look whether there is one.
import torchmetrics.functional.image.lpips
import torchmetrics.image.lpip


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
