"""Which rows of a call belong to the prompts, where callers and callbacks change guidance, embeddings and numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES, pipeline
from tide.activations import collect_sampling
from tide.adapters import adapter_for, tap
from tide.adapters.guidance import Guidance, is_running, watch_guidance
from tide.editing import Steer, edit
from tide.errors import TideError

PROMPTS = ("a red cube", "a house, far", "a tree")
#: What a callback of SD3 may exchange.
TEXTS = ["prompt_embeds", "pooled_prompt_embeds"]


def run(name: str, n_prompts: int = 2, *, n_steps: int = 4, guidance: float = 3.0, **kwargs) -> Any:
    """The pipeline itself, in a batch of the prompts."""
    family = FAMILIES[name]
    arguments = {**adapter_for(pipeline(name)).call_defaults, **family.arguments}
    if name == "hunyuan":  # whose pipeline fixes the length
        arguments.pop("max_sequence_length")
    prompts = {} if "prompt_embeds" in kwargs else {"prompt": list(PROMPTS[:n_prompts])}
    return pipeline(name)(
        **prompts,
        num_inference_steps=n_steps,
        guidance_scale=guidance,
        output_type="latent",
        **{"height": family.size[0], "width": family.size[1], **arguments, **kwargs},
    ).images


def rows_seen(name: str, *runs: dict[str, Any]) -> list[list[bool]]:
    seen: list[list[bool]] = []
    with tap(adapter_for(pipeline(name)), {1: lambda x, call: seen.append(call.conditional.tolist())}):
        for kwargs in runs:
            run(name, **kwargs)
    return seen


def off_from(step: int, scale: float = 0.0) -> Any:
    """The callback that the documents of diffusers show: guidance off, the prompts' half of the embeddings kept."""

    def switch(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if i == step - 1:
            pipe._guidance_scale = scale
            tensors = {name: x if name == "latents" else x[len(x) // 2 :] for name, x in tensors.items()}
        return tensors

    return switch


# -- guidance that is switched in the middle of a run ---------------------------------------------------------------


@pytest.mark.parametrize("n_prompts", [1, 2, 3])
@pytest.mark.parametrize("per_prompt", [1, 2])
def test_guidance_switched_off_by_a_callback(n_prompts, per_prompt):
    n = n_prompts * per_prompt
    switched = {
        "n_prompts": n_prompts,
        "num_images_per_prompt": per_prompt,
        "callback_on_step_end": off_from(2),
        "callback_on_step_end_tensor_inputs": TEXTS,
    }
    unswitched = {"n_prompts": n_prompts, "n_steps": 1}
    both = [False] * n + [True] * n
    seen = rows_seen("sd3", switched, unswitched)
    assert seen == [both, both, [True] * n, [True] * n, [False] * n_prompts + [True] * n_prompts]


def test_an_edit_reaches_every_prompt_after_the_switch():
    steer = Steer(torch.tensor([1.0]), torch.ones(1, 32))
    switched = {
        "callback_on_step_end": off_from(2),
        "callback_on_step_end_tensor_inputs": TEXTS,
        "n_steps": 3,
    }
    inner: list[torch.Tensor] = []
    outer: list[torch.Tensor] = []
    own = adapter_for(pipeline("sd3"))
    with (
        tap(own, {1: lambda x, call: inner.append(x.clone())}),
        edit(pipeline("sd3"), None, steer, block=1, steps=(0.6, 1.0)) as met,
        tap(own, {1: lambda x, call: outer.append(x.clone())}),
    ):
        run("sd3", generator=[torch.Generator().manual_seed(i) for i in range(2)], **switched)
    assert met.rows == 2
    torch.testing.assert_close(outer[2], inner[2] + 1)
    assert torch.equal(outer[1], inner[1])


def test_guidance_switched_on_by_a_callback():
    """A run encoded without guidance whose callback adds the rows of a negative prompt."""
    text = adapter_for(pipeline("sd3")).encode_prompts([""] * 3, 20)
    negative = dict(zip(TEXTS, text.values(), strict=True))

    def switch(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if i == 0:
            pipe._guidance_scale = 4.0
            tensors = {name: torch.cat([negative[name], x]) for name, x in tensors.items()}
        return tensors

    arguments = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": TEXTS}
    seen = rows_seen("sd3", {"n_prompts": 3, "guidance": 1.0, "n_steps": 2, **arguments})
    assert seen == [[True] * 3, [False] * 3 + [True] * 3]


@pytest.mark.parametrize("name", ["sd3", "sana", "hunyuan", "lumina_next", "lumina2"])
def test_a_scale_that_changes_leaves_the_rows(name):
    def change(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 2.0
        return tensors

    assert rows_seen(name, {"callback_on_step_end": change}) == rows_seen(name, {})


def test_a_scale_that_the_pipeline_does_not_read_again():
    """Lumina-Next decides once: its rows stay though its property says otherwise."""

    def change(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 0.0
        return tensors

    seen = rows_seen("lumina_next", {"callback_on_step_end": change})
    assert seen == [[True, True, False, False]] * 4


def test_lumina2_stops_its_negative_calls():
    seen = rows_seen(
        "lumina2", {"callback_on_step_end": lambda pipe, i, t, x: setattr(pipe, "_guidance_scale", 0) or x}
    )
    assert seen == [[True] * 2, [False] * 2, [True] * 2, [True] * 2, [True] * 2]


@pytest.mark.parametrize("name", ["flux", "lumina2"])
def test_prompts_exchanged_by_a_callback_are_still_prompts(name):
    def exchange(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}

    guided = {"negative_prompt": ["a tree"] * 2, **({"true_cfg_scale": 2.0} if name == "flux" else {})}
    arguments = {"callback_on_step_end": exchange, "callback_on_step_end_tensor_inputs": ["prompt_embeds"], **guided}
    assert rows_seen(name, {"n_steps": 3, **arguments}) == [[True] * 2, [False] * 2] * 3


def test_skip_layer_guidance_and_a_switch():
    arguments = {
        "skip_guidance_layers": [2],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
        "callback_on_step_end": off_from(2),
        "callback_on_step_end_tensor_inputs": TEXTS,
    }
    both = [False, False, True, True]
    assert rows_seen("sd3", arguments) == [both, both, [False] * 2, [True] * 2, [True] * 2]


def test_a_tapped_block_may_be_the_one_that_skip_layer_guidance_leaves_out():
    seen: list[int] = []
    arguments = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with tap(adapter_for(pipeline("sd3")), {1: lambda x, call: seen.append(len(x))}):
        run("sd3", n_steps=3, **arguments)
    assert seen == [4, 4, 4]


# -- what is given to the pipeline --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixart", "sd3", "sana", "hunyuan", "lumina_next"])
@pytest.mark.parametrize(("guidance", "n_prompts"), [(1.0, 2), (3.0, 2), (3.0, 3), (1.0, 3)])
def test_images_per_prompt(name, guidance, n_prompts):
    seen = rows_seen(name, {"n_prompts": n_prompts, "guidance": guidance, "n_steps": 2, "num_images_per_prompt": 2})
    n = n_prompts * 2
    first = [True] * n + [False] * n if name == "lumina_next" else [False] * n + [True] * n
    assert seen == [first if guidance > 1 else [True] * n] * 2


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_embeddings_instead_of_prompts(guidance):
    pipe = pipeline("sd3")
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(list(PROMPTS), None, None, max_sequence_length=20)
    seen = rows_seen(
        "sd3",
        {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
            "guidance": guidance,
            "n_steps": 1,
        },
    )
    assert seen == [[True] * 3 if guidance == 1 else [False] * 3 + [True] * 3]


def flux_texts(order: tuple[int, int]) -> dict[str, Any]:
    """Embeddings of prompt and negative prompt for Flux, encoded in this order."""
    pipe, texts = pipeline("flux"), {}
    for place in order:
        words = [list(FAMILIES["flux"].prompts), ["a tree"] * 2][place]
        embeds, pooled, _ = pipe.encode_prompt(words, max_sequence_length=20)
        sign = ("", "negative_")[place]
        texts |= {f"{sign}prompt_embeds": embeds, f"{sign}pooled_prompt_embeds": pooled}
    return texts


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the prompt first", "the negative prompt first"])
def test_embeddings_encoded_inside_the_context(order):
    """What the caller encoded before the run is none of the run's texts."""
    seen: list[bool] = []
    with tap(adapter_for(pipeline("flux")), {1: lambda x, call: seen.append(bool(call.conditional.all()))}):
        run("flux", n_steps=2, true_cfg_scale=2.0, **flux_texts(order))
    assert seen == [True, False] * 2


def test_one_tensor_as_prompt_and_negative_prompt(monkeypatch):
    texts = flux_texts((0, 1))
    same = {
        **texts,
        "negative_prompt_embeds": texts["prompt_embeds"],
        "negative_pooled_prompt_embeds": texts["pooled_prompt_embeds"],
    }
    expected = [[True] * 2, [False] * 2]
    # The pipeline names its calls, ...
    assert rows_seen("flux", {"true_cfg_scale": 2.0, "n_steps": 1, **same}) == expected
    # ... which those of earlier versions do not.
    monkeypatch.setattr("tide.adapters.guidance._CONTEXTS", {})
    with pytest.raises(TideError, match=r"one and the same tensor.*pass a clone of one"):
        rows_seen("flux", {"true_cfg_scale": 2.0, **same})
    same["negative_prompt_embeds"] = same["negative_prompt_embeds"].clone()
    assert rows_seen("flux", {"true_cfg_scale": 2.0, "n_steps": 1, **same}) == expected


@pytest.mark.parametrize("name", ["flux", "sd3", "lumina2"])
def test_a_run_that_failed_says_nothing_of_the_next(name):
    """It had encoded its prompts and not yet called the transformer."""
    seen: list[list[bool]] = []
    negative = {"negative_prompt": ["a tree"] * 2, **({"true_cfg_scale": 2.0} if name == "flux" else {})}
    with tap(adapter_for(pipeline(name)), {1: lambda x, call: seen.append(call.conditional.tolist())}):
        with pytest.raises(ValueError, match="generators"):
            run(name, generator=[torch.Generator()] * 5, **negative)
        run(name, guidance=3.0, n_steps=1, **negative)
        run(name, n_prompts=1, guidance=1.0, n_steps=1)
    expected = [[False, False, True, True]] if name == "sd3" else [[True, True], [False, False]]
    assert seen == [*expected, [True]]


# -- outside of the pipeline's runs -----------------------------------------------------------------------------------


def test_direct_calls_after_a_guided_run_are_the_prompts():
    """Noised images have no negative rows, whatever the last run was and however many there are."""
    own, seen = adapter_for(pipeline("sd3")), []
    text = own.encode_prompts(list(PROMPTS[:2]), 20)
    with torch.no_grad(), tap(own, {1: lambda x, call: seen.append(call.conditional.tolist())}):
        run("sd3", n_prompts=1, n_steps=1)
        own.denoise(torch.zeros(2, 4, 4, 2), 500, text)
        own.denoise(torch.zeros(2, 4, 4, 2), 500, own.encode_prompts(list(PROMPTS[:2]), 20))
    assert seen == [[False, True], [True, True], [True, True]]


def test_a_loop_of_ones_own():
    """The caller encodes for guidance and calls the transformer with both halves."""
    pipe, seen = pipeline("sd3"), []
    with torch.no_grad(), tap(adapter_for(pipe), {1: lambda x, call: seen.append(call.conditional.tolist())}):
        embeds, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPTS[0], None, None, max_sequence_length=20)
        text = {
            "encoder_hidden_states": torch.cat([negative, embeds]),
            "pooled_projections": torch.cat([negative_pooled, pooled]),
        }
        pipe.transformer(torch.zeros(2, 4, 4, 2), timestep=torch.tensor([5.0, 5.0]), **text)
        one = {name: x[1:] for name, x in text.items()}
        pipe.transformer(torch.zeros(1, 4, 4, 2), timestep=torch.tensor([5.0]), **one)
    assert seen == [[False, True], [True]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_context_opened_in_the_middle_of_a_run(guidance):
    """Without guidance the rows are known; with it the context has missed what tells them apart."""
    pipe, seen = pipeline("sd3"), []
    opened = edit(pipe, None, Steer(torch.tensor([1.0]), torch.zeros(1, 32)), block=1)

    def late(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert is_running(pipe)
        if i == 1:
            seen.append(opened.__enter__())
        return tensors

    try:
        if guidance == 1:
            run("sd3", guidance=guidance, callback_on_step_end=late)
            assert seen[0].rows == 2 * 2
        else:
            with pytest.raises(TideError, match="open the context before the pipeline is called"):
                run("sd3", guidance=guidance, callback_on_step_end=late)
    finally:
        opened.__exit__(None, None, None)
    assert not is_running(pipe)


def test_a_run_without_any_row_of_a_prompt():
    """DiT's class beyond the last stands for none."""
    with pytest.raises(TideError, match="block 1 met no row of the prompts in this run"):
        next(collect_sampling(adapter_for(pipeline("dit")), ["", ""], [1], n_steps=2))


class _Pipe:
    """Says what it is told to; ``call`` is its run."""

    def __init__(self, **says: Any) -> None:
        self.__dict__.update(says)

    def encode_prompt(self, prompt: list[str], do_classifier_free_guidance: bool = True) -> Any:
        return (torch.zeros(len(prompt), 3), None)

    def __call__(self, call: Any) -> Any:
        return call()


@pytest.mark.parametrize(
    ("says", "encoded", "rows", "expected"),
    [
        ({"do_classifier_free_guidance": True}, True, 6, True),
        ({"do_classifier_free_guidance": False}, True, 3, False),
        ({"do_classifier_free_guidance": True}, True, 3, "3 rows in a run with guidance that encoded 3 prompts"),
        ({"do_classifier_free_guidance": True}, True, 9, "9 rows in a run with guidance that encoded 3 prompts"),
        ({"do_classifier_free_guidance": False}, False, 6, "6 rows in a run without guidance"),
        ({"do_classifier_free_guidance": True}, False, 6, True),
        ({}, True, 6, True),
        ({}, False, 3, False),
        ({}, False, 6, "6 rows in a run without guidance that encoded 3 prompts leaves open"),
        ({}, True, 4, "4 rows in a run with guidance"),
    ],
)  # fmt: skip
def test_rows_are_counted_against_the_prompts_of_the_run(says, encoded, rows, expected):
    pipe = _Pipe(**says)
    with watch_guidance(pipe) as guidance:

        def call() -> bool:
            pipe.encode_prompt(["a"] * 3, encoded)
            return guidance.holds_both(rows)

        if isinstance(expected, str):
            with pytest.raises(TideError, match=expected):
                pipe(call)
        else:
            assert pipe(call) is expected


def test_the_texts_are_those_of_the_newest_run():
    guidance = Guidance(_Pipe())
    assert guidance.n_prompts is None
    guidance.texts = [(torch.zeros(5, 1),), (torch.zeros(2, 1),)]
    assert guidance.n_prompts == 2
    guidance.texts = [torch.zeros(5, 1)]
    assert guidance.n_prompts is None
