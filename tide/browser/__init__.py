"""The server behind ``tide browse``: what was learnt, looked through and steered with in a browser."""
