# %% [markdown]
# # Your own images and your own small pipeline
#
# TIDE takes any folder of captioned images and any diffusers pipeline whose transformer it knows: PixArt, SD3, Flux,
# Sana, DiT, Lumina2, Lumina-Next, HunyuanDiT. This notebook makes both in the smallest form, so that every step is
# there to see: a folder of 240 pictures, and a PixArt of three blocks that is trained on them for seconds. With a
# folder and a pipeline of your own, start at *Collect*.
#
# Nothing is downloaded. In a checkout, `pip install '.[notebooks]'` installs what is needed. The cells take about a
# minute on two cores.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from IPython.display import display
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

import tide
from tide.editing import Beside, draw_image
from tide.strips import Row, labelled

work = Path(tempfile.mkdtemp())
torch.manual_seed(0)
place = np.random.default_rng(0)

# %% [markdown]
# ## A folder of images with captions
#
# `metadata.jsonl` has one line for each image: its file name and its caption. Other forms work, too
# (`docs/questions.md`, "What can `--data` be?").

# %%
COLOURS = {"red": (210, 40, 40), "green": (40, 150, 60), "blue": (40, 70, 210), "yellow": (225, 190, 30)}
SHAPES = ("circle", "square", "triangle")
SKY = (200, 220, 240)


def drawn(colour, shape):
    """A picture of 64 x 64 pixels: a shape in a colour, about the middle of a pale sky."""
    image = Image.new("RGB", (64, 64), SKY)
    x, y, r = *(int(each) for each in place.integers(29, 36, 2)), int(place.integers(16, 19))
    pen, box = ImageDraw.Draw(image), (x - r, y - r, x + r, y + r)
    if shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    else:
        {"circle": pen.ellipse, "square": pen.rectangle}[shape](box, fill=COLOURS[colour])
    return image


folder = work / "shapes"
folder.mkdir()
captions = [(colour, shape) for _ in range(20) for colour in COLOURS for shape in SHAPES]
lines = []
for i, (colour, shape) in enumerate(captions):
    drawn(colour, shape).save(folder / f"{i:03}.png")
    lines.append(json.dumps({"file_name": f"{i:03}.png", "text": f"a {colour} {shape}"}))
(folder / "metadata.jsonl").write_text("\n".join(lines))
pictures = [Image.open(folder / f"{i:03}.png") for i in range(len(captions))]
display(labelled([Row(pictures[:6], [json.loads(line)["text"] for line in lines[:6]])], side=128))

# %% [markdown]
# ## A pipeline
#
# A PixArt pipeline has five parts. Tokenizer, text encoder and transformer are made here. The text encoder stays
# random: for seven words that is enough. The VAE, which turns 64 x 64 pixels into 16 x 16 latents, takes longer to
# train than this notebook has, so we borrow that of the bundled pipeline. It was trained on scenes below a sky, and
# white or grey pictures come out of it in wrong colours. That is why our shapes lie on a pale blue. We check that
# they survive.

# %%
words = ("<pad>", "</s>", "<unk>", "a", *COLOURS, *SHAPES)
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
text_config = T5Config(vocab_size=len(words), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
noise_schedule = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}

pipe = PixArtAlphaPipeline(
    tokenizer=PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    ),
    text_encoder=T5EncoderModel(text_config).eval(),
    vae=tide.scenes.load_pipeline().vae.float().eval(),
    transformer=PixArtTransformer2DModel(
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        sample_size=16,
        patch_size=2,
        cross_attention_dim=64,
        caption_channels=64,
        use_additional_conditions=False,
    ),
    scheduler=DPMSolverMultistepScheduler(**noise_schedule),
)
pipe.set_progress_bar_config(disable=True)

pixels = torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
with torch.no_grad():
    latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    error = (pipe.vae.decode(latents[:24] / pipe.vae.config.scaling_factor).sample - pixels[:24]).abs().mean()
print(f"The VAE is off by {float(error):.3f} of the range from -1 to 1 on average.")
assert error < 0.1

# %% [markdown]
# ## Train it
#
# The usual recipe: noise the latents, predict the velocity, drop a tenth of the captions so that guidance works.

# %%
STEPS, BATCH = 320, 16
with torch.no_grad():
    texts = [json.loads(line)["text"] for line in lines] + [""]
    embedded, mask = pipe.encode_prompt(texts, do_classifier_free_guidance=False)[:2]
scheduler, transformer = DDIMScheduler(**noise_schedule), pipe.transformer.train()
optimizer = torch.optim.AdamW(transformer.parameters(), betas=(0.9, 0.98), weight_decay=0)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
losses = []
for _ in range(STEPS):
    rows = torch.randint(len(latents), (BATCH,))
    clean, timesteps = latents[rows], torch.randint(1000, (BATCH,))
    noise = torch.randn_like(clean)
    rows = torch.where(torch.rand(BATCH) < 0.1, len(latents), rows)  # the last text is empty
    predicted = transformer(
        scheduler.add_noise(clean, noise, timesteps),
        encoder_hidden_states=embedded[rows],
        encoder_attention_mask=mask[rows],
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample.chunk(2, dim=1)[0]
    loss = F.mse_loss(predicted, scheduler.get_velocity(clean, noise, timesteps))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
    optimizer.step()
    rate.step()
    losses.append(float(loss.detach()))
transformer.eval()
first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
print(f"The loss falls from {first:.2f} to {last:.2f}.")
assert last < first / 3
pipe.save_pretrained(work / "shapes-pipeline")

# %% [markdown]
# ## Open it with TIDE
#
# `load_adapter` takes the folder. If your pipeline is in memory already, `tide.adapter_for(pipe)` is the same. The
# adapter knows where the image tokens of a family's blocks are. For another transformer this is the place where you
# hear that it is unknown; `docs/adapters.md` has a complete adapter of fifty lines.

# %%
adapter = tide.load_adapter(str(work / "shapes-pipeline"))
assert adapter.family == tide.adapter_for(pipe).family == "pixart"
print(f"{adapter.family}: {adapter.n_blocks} blocks of width {adapter.d_model}, {adapter.token_grid(16, 16)} tokens")

run = {"n_steps": 12, "guidance_scale": 3.0, "seed": 1}
prompts = ("a red circle", "a blue square", "a yellow triangle")


def paint(picture):
    """The colour of the tenth of the picture that differs most from the sky."""
    rows = np.asarray(picture, float).reshape(-1, 3)
    away = np.linalg.norm(rows - SKY, axis=1)
    mean = rows[away >= np.quantile(away, 0.9)].mean(0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(mean - COLOURS[name])))


own = [draw_image(adapter, prompt, **run) for prompt in prompts]
display(labelled([Row(own, prompts)], side=128))
assert [paint(each) for each in own] == ["red", "blue", "yellow"]

# %% [markdown]
# The colours follow the caption, the shapes only roughly after so few steps. It will do: TIDE looks at what the
# pipeline does, not at how well it draws.
#
# ## Collect and train
#
# Three tenths of the images are held out for measuring: the default, a tenth, is too few of so small a folder. Each
# of the others is read once, at two random timesteps.

# %%
BLOCK = 1  # the middle one of three
images = tide.open_source(folder, adapter, hold_out=0.3, batch_size=16)
activations = (blocks[BLOCK] for blocks in tide.collect(adapter, images, [BLOCK], token_fraction=1 / 2, batch_size=16))
config = tide.TrainConfig(steps=400, n_latents=256, k=8, batch_tokens=512)
job = tide.from_pool(activations, adapter, config, block=BLOCK, source=images)
sae = tide.train(job, work / "tide").model

# %% [markdown]
# ## Evaluate
#
# `evaluate` leaves out the images that trained the TIDE, whatever they are called, and says so.

# %%
everything = tide.open_source(folder, adapter)
figures = tide.evaluate(adapter, sae, everything, token_fraction=1 / 2, loss_timesteps=4)
print(tide.evaluation_text(figures).split("\n\n")[1])
assert figures["images"]["of"] == "held-out"
ours, pca = figures["models"]["tide"], figures["models"]["pca_k"]
assert ours["explained_variance"] > pca["explained_variance"]

# %% [markdown]
# ## Concepts
#
# For each word, the latent that best tells images whose caption has it from the others. It is chosen on one half of
# the images and scored on the other. Beside it: the best raw neuron, and the best latent of an *untrained*
# autoencoder.

# %%
names = [*COLOURS, *SHAPES]
concepts = tide.caption_concepts(adapter, sae, everything, names, images_per_concept=30, top_images=2, batch_size=16)
print(f"Scored on {concepts.kind} images.")
for name in names:
    row = concepts.concepts[name]
    print(
        f"{name:9} latent {row['latent']:4} AUROC {row['auroc']:.2f}   neuron {row['neuron']['auroc']:.2f}   "
        f"untrained {row['random']['auroc']:.2f}   {row['remark']}"
    )
assert concepts.kind == "held-out"
scores = {kind: [concepts.concepts[name][kind]["auroc"] for name in names] for kind in ("neuron", "random")}
scores["latent"] = [concepts.concepts[name]["auroc"] for name in names]
means = {kind: sum(each) / len(each) for kind, each in scores.items()}
print("mean AUROC:", ", ".join(f"{kind} {each:.2f}" for kind, each in means.items()))
best = max(names, key=lambda name: concepts.concepts[name]["auroc"])
assert means["latent"] < max(means["neuron"], means["random"]) + 0.05
display(concepts.picture(best))

# %% [markdown]
# Read this with care. Latents find the colours, and so do raw neurons and even an autoencoder that nobody trained:
# flat shapes on an empty sky are too easy to tell anything. On pictures like these a high AUROC is no merit of the
# TIDE. That is what the two columns beside it are for; on your own pictures, look at them first.
#
# ## Edit
#
# Draw "a red circle" and move its latents, at every step, to those that "a blue circle" has. The prompt stays the
# same. Beside it, raw activations are moved in the same way, without a TIDE.

# %%
target = tide.prompt_target(adapter, sae, "a blue circle", **run)
edits = {
    "half way": tide.Replace(target, factor=0.5),
    "all the way": tide.Replace(target),
    "raw activations": Beside(adapter, "a blue circle"),
}
before, after = tide.draw_edits(adapter, sae, "a red circle", edits, **run)
display(labelled([Row([before, *after.values()], ["a red circle", *after])], side=128))


# %%
def blueness(picture):
    """How much more blue than red the picture has, in levels of 255."""
    pixels = np.asarray(picture, float).mean((0, 1))
    return float(pixels[2] - pixels[0])


blue = {name: blueness(each) for name, each in {"before": before, **after}.items()}
print(", ".join(f"{name} {each:.0f}" for name, each in blue.items()))
assert blue["before"] < blue["half way"] < blue["all the way"]
assert blue["raw activations"] > blue["before"] + 10

# %% [markdown]
# ## With your own
#
# Replace two lines, and the rest stays as it is:
#
# ```python
# adapter = tide.load_adapter("my-pipeline")  # a folder or an id of diffusers, with device="cuda" on a GPU
# images = tide.open_source("photos/", adapter, hold_out=0.1)
# ```
#
# and start with the defaults: `tide.TrainConfig(steps=2000)`, the penultimate block, a thousand images or more
# (`docs/questions.md`). A transformer that TIDE does not know needs an adapter: `docs/adapters.md` has a complete
# one, and `tide.load_adapter(folder, adapter="my_adapter.py")` takes it.
