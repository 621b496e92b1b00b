"""A CLIP of transformers, tiny and with random weights, on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

#: The longest text in tokens, start and end included.
LONGEST = 16


def save_tiny_clip(folder: Path) -> Path:
    """Byte-level, so that every text has tokens: one a letter, where CLIP merges letters to words."""
    ends = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = {token: i for i, token in enumerate([*ends, *letters, *(letter + "</w>" for letter in letters)])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    size = {"height": 32, "width": 32}
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), tokenizer)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": LONGEST, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config=part | text, vision_config=part | {"image_size": 32, "patch_size": 8}, projection_dim=12
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
    for parameter in model.parameters():  # as initialised, one image is to it much like another
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
