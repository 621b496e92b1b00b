"""The study of the bundled pipeline: the demo, the bars, and their report."""
