"""The paper's tables and figures on the bundled pipeline, one file each, over a grid of cells that can be resumed."""
