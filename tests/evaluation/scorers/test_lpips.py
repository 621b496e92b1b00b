"""LPIPS against its formula in float64.

torchvision cannot be installed beside the torch of these tests. LPIPS runs here as torchmetrics has it, over a stand-in
that has AlexNet's layers and loads weights as torchvision does; tests of the real networks are skipped without it.
"""

from __future__ import annotations

import hashlib
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.scorer_inputs import NEEDS_TORCHVISION, random_images
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
    path = tmp_path_factory.mktemp("alexnet") / "mine.safetensors"
    save_file({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


@pytest.fixture
def torchvision_with(monkeypatch):
    """Has a stand-in for torchvision, which expects a file of the name that this returns."""

    def install() -> str:
        name = "alexnet-owt-7be5be79.pth"
        weights = SimpleNamespace(DEFAULT=SimpleNamespace(url=f"https://download.pytorch.org/models/{name}"))
        models = SimpleNamespace(
            get_model_weights={"alexnet": weights}.__getitem__, AlexNet_Weights=weights, alexnet=_AlexNet
        )
        module = ModuleType("torchvision")
        module.models = models
        monkeypatch.setitem(sys.modules, "torchvision", module)
        for user in (torchmetrics.image.lpip, torchmetrics.functional.image.lpips):
            monkeypatch.setattr(user, "_TORCHVISION_AVAILABLE", True)
        return name

    return install


def lpips_by_hand(path: Path, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In float64: the sum over layers of the mean over places of sum_c w_c (f_a - f_b)_c^2, each f of unit length."""
    weights = load_file(path)
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
    torchvision_with()
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
    torchvision_with()
    stated = LPIPSScorer(alexnet).provenance
    assert (stated["scorer"], stated["model"]) == ("LPIPSScorer", "LPIPS alex")
    assert stated["weights"] == str(alexnet)
    assert stated["sha256"] == hashlib.sha256(alexnet.read_bytes()).hexdigest()
    assert stated["versions"]["torchmetrics"] == torchmetrics.__version__
    assert list(stated["versions"]) == ["torch", "torchmetrics", "torchvision"]


def test_lpips_lends_torch_hub_a_folder_and_gives_it_back(alexnet, torchvision_with, monkeypatch, tmp_path):
    name = torchvision_with()
    torch.hub.set_dir(tmp_path / "hub")
    monkeypatch.setattr(torch.hub, "_hub_dir", torch.hub.get_dir())
    seen = []

    def make(net: str, reduction: str, normalize: bool) -> nn.Module:
        hub = Path(torch.hub.get_dir())
        seen.append((net, reduction, normalize, hub))
        assert [file.name for file in hub.rglob("*") if file.is_file()] == [name]
        loaded = torch.load(hub / "checkpoints" / name, weights_only=True)
        assert all(torch.equal(value, loaded[key]) for key, value in load_file(alexnet).items())
        if len(seen) == 2:
            raise KeyError("no")
        return nn.Identity()

    monkeypatch.setattr(torchmetrics.image.lpip, "LearnedPerceptualImagePatchSimilarity", make)
    LPIPSScorer(alexnet)
    with pytest.raises(KeyError, match="no"):
        LPIPSScorer(alexnet)
    assert [each[:3] for each in seen] == [("alex", "none", False)] * 2
    assert torch.hub.get_dir() == str(tmp_path / "hub")
    assert not any(hub.exists() for *_, hub in seen)
    assert not (tmp_path / "hub").exists()
    assert alexnet.is_file()


def test_lpips_files_that_cannot_serve(alexnet, torchvision_with, tmp_path):
    torchvision_with()
    expected = "one of torchvision's alexnet-owt-7be5be79.pth, vgg16-397923af.pth, squeezenet1_1-b8a52dc0.pth as"
    path = tmp_path / "weights.safetensors"
    with pytest.raises(TideError, match=f"{path} does not exist; put {expected} safetensors there"):
        LPIPSScorer(path)
    for tensors, message in (
        ({"weight": torch.zeros(1)}, "holds no 'features.0.weight'"),
        ({"features.0.weight": torch.zeros(1)}, "holds weights of none of alex, vgg, squeeze"),
        (load_file(alexnet) | {"features.3.bias": torch.zeros(3)}, r"does not fit LPIPS alex \(.*features.3.bias.*\)"),
        (load_file(alexnet) | {"features.3.bias": torch.full((192,), torch.nan)}, ": features.3.bias holds NaN or inf"),
    ):
        save_file(tensors, path)
        with pytest.raises(TideError, match=f"{path}:? ?{message}; give {expected}") as caught:
            LPIPSScorer(path)
        assert "\n" not in str(caught.value)


class _Started:
    """Unpickled, it says so."""

    def __reduce__(self):
        return Path.touch, (self.path,)

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.parametrize("save", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_a_pickle_is_never_loaded(save, tmp_path):
    path = tmp_path / "weights.pth"
    save(_Started(tmp_path / "started"), path)
    with pytest.raises(
        TideError, match=f"{path} is a pickle, which is never loaded; convert it once: python -c "
    ) as caught:
        LPIPSScorer(path)
    assert not (tmp_path / "started").exists()
    assert "\n" not in str(caught.value)


def test_the_command_of_the_message_converts_a_pickle(alexnet, torchvision_with, tmp_path):
    torchvision_with()
    path = tmp_path / "alexnet.pth"
    torch.save(load_file(alexnet), path)
    with pytest.raises(TideError) as caught:
        LPIPSScorer(path)
    command = str(caught.value).partition("convert it once: ")[2]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    assert LPIPSScorer(tmp_path / "alexnet.safetensors").net == "alex"


def test_lpips_pairs_that_cannot_be_compared(alexnet, torchvision_with):
    torchvision_with()
    scorer = LPIPSScorer(alexnet)
    with pytest.raises(TideError, match=r"images \[3, 3, 40, 40\] and references \[2, 3, 40, 40\] differ in shape"):
        scorer.distance(random_images(), random_images(2))
    with pytest.raises(TideError, match=r"images are \[1, 3, 31, 31\]; LPIPS needs at least 32 pixels a side"):
        scorer.distance(random_images(1, 31), random_images(1, 31))
    with pytest.raises(TideError, match="images reach from"):
        scorer.distance(random_images(), random_images() * 2)


def test_lpips_without_its_libraries(alexnet, torchvision_with, without):
    torchvision_with()
    without("torchmetrics")
    with pytest.raises(TideError) as caught:
        LPIPSScorer(alexnet)
    assert str(caught.value) == 'LPIPS needs torchmetrics, which is not installed: pip install "tide-sae[scores]"'
    without("torchvision")
    with pytest.raises(TideError) as caught:
        LPIPSScorer(alexnet)
    assert str(caught.value) == 'LPIPS needs torchvision, which is not installed: pip install "tide-sae[scores]"'


def test_lpips_beside_a_torchvision_for_another_torch(alexnet, torchvision_with, without):
    torchvision_with()
    without("torchvision", RuntimeError("operator torchvision::nms\n does not exist"))
    with pytest.raises(TideError) as caught:
        LPIPSScorer(alexnet)
    assert str(caught.value) == (
        "LPIPS needs torchvision, which cannot be imported (operator torchvision::nms does not exist); install the "
        f"builds of torchvision and of the rest that are made for torch {torch.__version__}: "
        'pip install "tide-sae[scores]"'
    )


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_of_the_real_networks(net, tmp_path):
    """Random weights."""
    torchvision = pytest.importorskip("torchvision", reason=NEEDS_TORCHVISION)
    model = lpips.FILES[net][0]
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(torchvision.models.get_model(model, weights=None).state_dict(), path)
    scorer = LPIPSScorer(path)
    assert scorer.net == net
    a, b = random_images(2, lpips.SMALLEST), random_images(2, lpips.SMALLEST, seed=1)
    found = scorer.distance(a, b)
    assert (found > 0).all()
    if net == "alex":
        features = {name: value for name, value in load_file(path).items() if name.startswith("features.")}
        save_file(features, tmp_path / "features.safetensors")
        expected = lpips_by_hand(tmp_path / "features.safetensors", a, b)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)
