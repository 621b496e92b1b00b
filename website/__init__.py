"""The documentation site: the Markdown pages, a page for each command, and a reference from docstrings."""
