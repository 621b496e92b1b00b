"""Safety on the bundled pipeline: an unwanted class or style, what keeps it away, and what brings it back.

- ``prompts``: the unwanted concept, prompts that ask for it, and prompts of the same kind that are allowed;
- ``attacks``: the same requests in other words, hidden in other captions, with other noise, guidance and steps;
- ``rivals``: what a guard is compared with, changes of the prompt; ``attention_edit``: of the cross-attention's
  weights;
- ``gradient_attack``: a change of the prompt's embedding, found by gradient through whatever protects the pipeline;
- ``drawing``: images of requests under a rival; ``measures``: what the judge's verdicts on them say;
- ``steering``: raw steering, a rival; ``detection``: how well latents tell a concept, beside baselines;
- ``study``: the grid of ``tide reproduce safety``; ``protections``, ``names``, ``report``, ``gallery``: its parts.
"""

from tide.studies.safety.study import reproduce

__all__ = ["reproduce"]
