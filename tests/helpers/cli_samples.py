"""Sizes that the command-line tests share."""

#: Images in the folder of the fixture ``images``.
N_IMAGES = 10

#: A small, quick model.
SMALL = ("--set", "n_latents=96", "k=8", "batch_tokens=64", "checkpoint_every=2")
