"""What tests of several folders share: samples, tiny models, damaged files."""
