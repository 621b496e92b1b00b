"""Adapters of one's own: how they are named, found and checked, and pipelines whose classes are not of diffusers."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.adapters import own_modules
from tests.helpers.families import pipeline
from tide.adapters import Adapter, adapter_for, import_adapters, installed, register, registry
from tide.adapters.families.dit import DiTAdapter
from tide.errors import TideError, TideWarning
from tide.loading import load_adapter

MODEL = """
from diffusers import DiTPipeline
import diffusers.models.transformers.dit_transformer_2d as dit
class OwnTransformer(dit.DiTTransformer2DModel):
    pass
class OwnPipeline(DiTPipeline):
    pass
"""
ADAPTER = """
from own_model import OwnPipeline, OwnTransformer
from tide.adapters import register
from tide.adapters.families.dit import DiTAdapter
@register(OwnTransformer)
class OwnAdapter(DiTAdapter):
    family = "own"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A current folder with a model of one's own and its adapter, which nobody has imported yet."""
    (tmp_path / "own_model.py").write_text(MODEL)
    (tmp_path / "own_adapter.py").write_text(ADAPTER)
    monkeypatch.chdir(tmp_path)
    with own_modules(tmp_path):
        sys.path.remove(str(tmp_path))
        yield tmp_path


@pytest.fixture
def saved(folder) -> Path:
    """DiT's tiny pipeline as a script of one's own would save it, whose classes are ``__main__``'s."""
    pipeline("dit").save_pretrained(folder / "saved")
    file = folder / "saved" / "model_index.json"
    index = {
        **json.loads(file.read_text()),
        "_class_name": "OwnPipeline",
        "transformer": ["__main__", "OwnTransformer"],
    }
    file.write_text(json.dumps(index))
    return folder / "saved"


def write(folder: Path, text: str) -> str:
    (folder / "wrong.py").write_text(text)
    return "wrong.py"


# -- pipelines with classes of one's own -----------------------------------------------------------------------------


def test_a_pipeline_of_own_classes_is_loaded_with_its_adapter(saved):
    own = load_adapter(saved, device="cpu", adapter="own_adapter.py")
    assert own.family == "own"
    assert [type(own.pipe).__name__, type(own.transformer).__name__] == ["OwnPipeline", "OwnTransformer"]
    weights = pipeline("dit").transformer.state_dict()
    assert all((value == weights[name]).all() for name, value in own.transformer.state_dict().items())
    assert load_adapter(saved, device="cpu", denoiser_only=True).pipe.vae is None


def test_without_its_adapter_it_is_refused(saved):
    with pytest.raises(TideError, match=r"is a OwnPipeline, which diffusers .* with --adapter$"):
        load_adapter(saved, device="cpu")
    file = saved / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "DiTPipeline"}))
    message = (
        f"{file} brings the module '__main__' for transformer, which is not of diffusers (a module of your own is "
        "named by --adapter); read it, and add --trust-remote-code to run it"
    )
    with pytest.raises(TideError) as raised:
        load_adapter(saved, device="cpu")
    assert str(raised.value) == message


def test_a_class_that_an_adapters_module_only_imports_is_not_its_own(saved):
    """Else a folder could name diffusers' own loader for a part, which checks nothing."""
    file = saved / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vae": ["anything", "DiTPipeline"]}))
    with pytest.raises(TideError, match="brings the module 'anything' for vae, which is not of diffusers"):
        load_adapter(saved, device="cpu", adapter="own_adapter.py")


def test_a_pipeline_of_diffusers_with_an_own_transformer(saved):
    file = saved / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "DiTPipeline"}))
    own = load_adapter(saved, device="cpu", adapter="own_adapter.py")
    assert [type(own.pipe).__name__, type(own.transformer).__name__] == ["DiTPipeline", "OwnTransformer"]


def test_a_transformer_that_the_folder_brings_is_registered_by_its_name(folder):
    pipeline("dit").save_pretrained(folder / "saved")
    (folder / "saved/transformer/code.py").write_text(MODEL)
    file = folder / "saved/model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformer": ["code", "OwnTransformer"]}))
    (folder / "named.py").write_text(
        ADAPTER.replace("from own_model import OwnPipeline, OwnTransformer", "").replace(
            "(OwnTransformer)", "('OwnTransformer')"
        )
    )
    own = load_adapter(folder / "saved", device="cpu", adapter="named.py", trust_remote_code=True)
    assert own.family == "own"


# -- how the module is named -----------------------------------------------------------------------------------------


def test_a_module_is_named_by_its_file_or_its_name_and_runs_once(folder):
    import_adapters(folder / "own_adapter.py")
    import_adapters("own_adapter.py")
    import_adapters("own_adapter")
    assert "own" in registry.families()
    assert sys.modules["own_adapter"].OwnTransformer is sys.modules["own_model"].OwnTransformer


def test_a_file_with_the_name_of_a_library_takes_not_its_place(folder):
    before = sys.modules["json"]
    (folder / "own_adapter.py").rename(folder / "json.py")
    import_adapters("json.py")
    assert sys.modules["json"] is before
    assert "own" in registry.families()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py", "the adapter {folder}/none.py does not exist; give a Python file or the name of a module"),
        ("none", "there is no module 'none'; install it, or give its file"),
        ("none.of.them", "there is no module 'none.of.them'; install it, or give its file"),
        ("own_adapter", "there is no module 'own_adapter'; install it, or give its file, such as own_adapter.py"),
    ],
)
def test_a_module_that_is_not_there(folder, name, message):
    with pytest.raises(TideError) as raised:
        import_adapters(name)
    assert str(raised.value) == message.format(folder=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nothing_of_this_name",
            r"failed \(ModuleNotFoundError: No .*, line 1 of .*wrong\.py\); mend it$",
        ),
        ("x = 1\n1 / 0", r"failed \(ZeroDivisionError: division by zero, line 2 of .*wrong\.py\); mend it$"),
        ("def", r"failed \(SyntaxError: .*\); mend it$"),
        ("raise SystemExit('done')", r"failed \(SystemExit: done, line 1 of .*\); mend it$"),
        ("x = 1", "^wrong.py registers no adapter; decorate a subclass of tide.adapters.Adapter in it with @tide"),
    ],
    ids=["import", "error", "syntax", "exit", "nothing"],
)
def test_a_module_that_fails(folder, text, message):
    modules = set(sys.modules)
    with pytest.raises(TideError, match=message) as raised:
        import_adapters(write(folder, text))
    assert "\n" not in str(raised.value)
    if "registers" not in message:
        assert set(sys.modules) - modules <= {"wrong"} - {"wrong"}


def test_an_adapter_of_another_pipeline(folder):
    pipeline("dit").save_pretrained(folder / "plain")
    with pytest.raises(TideError) as raised:
        load_adapter(folder / "plain", device="cpu", adapter="own_adapter.py")
    assert str(raised.value) == (
        "the adapter own_adapter.py is not for this pipeline, whose DiTTransformer2DModel is served by DiTAdapter; "
        "leave it off, or give another pipeline"
    )


# -- what is registered -----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path) -> Iterator[None]:
    with own_modules(tmp_path):
        yield


class Transformer:
    pass


@pytest.mark.usefixtures("fresh")
class TestRegister:
    def test_missing_methods_are_named(self):
        class Partial(Adapter):
            family = "partial"
            blocks = d_model = encode_prompts = conditional_rows = modulation = None

        with pytest.raises(TideError, match=r"^the adapter Partial lacks conditioning_of, denoise; define them \("):
            register(Transformer)(Partial)

    @pytest.mark.parametrize("family", [None, "", "a family", 3])
    def test_a_family_is_a_name(self, family):
        own = type("Own", (DiTAdapter,), {"family": family})
        with pytest.raises(TideError, match=r"^the adapter Own has no family; set family = 'mine', the name that"):
            register(Transformer)(own)

    @pytest.mark.parametrize("own", [Transformer, lambda pipe: None, 3], ids=["class", "function", "number"])
    def test_what_is_no_adapter(self, own: Any):
        with pytest.raises(TideError, match=r"is not a subclass of tide\.adapters\.Adapter; derive it from that$"):
            register(Transformer)(own)

    def test_two_for_one_transformer(self):
        register(Transformer)(type("First", (DiTAdapter,), {"family": "first"}))
        with pytest.raises(TideError, match=r"^Transformer has an adapter already, First of .*; register one of them$"):
            register(Transformer)(type("Second", (DiTAdapter,), {"family": "second"}))

    def test_a_family_that_is_taken(self):
        complete = {name: None for name in Adapter.__abstractmethods__}
        own = type("Own", (Adapter,), {**complete, "family": "flux"})
        with pytest.raises(TideError, match=r"^the family 'flux' is that of FluxAdapter; give Own a name of its own$"):
            register(Transformer)(own)

    def test_a_cell_of_a_notebook_may_run_twice(self):
        for _ in range(2):
            own = type("Own", (DiTAdapter,), {"family": "own"})
            register(type("Model", (), {}))(own)
            register(Transformer)(own)
        assert registry._ADAPTERS[Transformer] is own


# -- installed packages -----------------------------------------------------------------------------------------------


def installed_points(monkeypatch, *points: Any) -> None:
    monkeypatch.setattr(installed, "entry_points", lambda group: points if group == "tide.adapters" else ())


def test_an_installed_adapter_is_imported_only_where_no_other_fits(saved, monkeypatch):
    loaded: list[str] = []

    def load() -> None:
        loaded.append("own_adapter")
        import_adapters("own_adapter.py")

    installed_points(monkeypatch, types.SimpleNamespace(load=load, value="own_adapter", dist=None))
    assert adapter_for(pipeline("dit")).family == "dit"
    assert loaded == []
    assert load_adapter(saved, device="cpu").family == "own"
    assert loaded == ["own_adapter"]


@pytest.mark.usefixtures("fresh")
def test_an_installed_adapter_that_fails_is_named_and_others_still_serve(monkeypatch):
    def fails() -> None:
        raise ImportError("no module of this name")

    package = types.SimpleNamespace(name="tide-broken")
    installed_points(monkeypatch, types.SimpleNamespace(load=fails, value="broken.adapter", dist=package))
    with pytest.warns(TideWarning, match=r"broken\.adapter of the package tide-broken could not be loaded \(Imp"):
        assert not registry.serves_family("own")
