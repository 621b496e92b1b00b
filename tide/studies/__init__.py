"""Studies of the bundled pipeline: the demo, the paper's tables and figures, and the bars.

Only the command line imports them. What they share: ``options`` (what a study is given and leaves), ``grid`` (resumable
cells), ``bench`` (activations and measurements), ``models`` (trained or given), ``tasks``, ``methods``, ``references``
and ``regions`` (edits of single prompts), ``edit_study`` (their protocol), ``mask_concepts`` (concepts against masks) and
``compare`` (fair comparisons). Each study is a module with ``reproduce(options)``: ``fig1``, ``fig4``, ``fig5``, ``fig6``,
``table1``, ``ablation``, ``centring`` and ``bars``; ``demo`` has a function of its own name. ``scaling``, ``orderings``,
``emergence``, ``shifted`` and ``fig6_pictures`` serve one study each; ``report`` writes the page of the demo and the bars.
"""
