"""Studies of the bundled pipeline: the demo, the paper's tables and figures, and the bars.

Only the command line imports them. Each study is a module with ``reproduce(options)``: ``fig1``, ``table1``, ``fig4``,
``fig5``, ``fig6``, ``where``, ``bank``, ``sparsity``, ``ablation``, ``centring`` and ``bars``; ``demo`` has a function
of that name. They share

- ``options`` (what a study is given and leaves), ``grid`` (resumable cells), ``bench`` (activations and measurements),
  ``models`` (trained ones, or a given one), ``compare`` (fair comparisons);
- ``mask_concepts`` (concepts against the renderer's masks), ``measurements`` (what the demo and the bars measure);
- ``tasks``, ``methods``, ``references`` and ``regions`` (edits of single prompts), ``trial`` (a batch of them,
  drawn and judged), ``edit_study`` (the protocol of fig6 and the bars), ``equal_information`` (that of where and
  bank), ``class_knowledge`` (means and banks);
- the package ``safety`` (what keeps an unwanted concept away, and what brings it back);
- ``report`` and ``report_tables`` with the template ``report.html`` (the page of the demo and of the bars).

``scaling``, ``orderings``, ``emergence``, ``shifted`` and ``fig6_pictures`` each serve one study, ``scene_concepts``
the command `tide concepts`.
"""
