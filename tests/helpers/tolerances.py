"""Tolerances of kernels that compute in float32, by the dtype of tensors, relative to the RMS of a result."""

import torch

#: A float16 result is rounded once more, by half a unit in the last of 11 bits, on entries of up to about four times
#: the RMS.
SUMS = {torch.float32: 1e-5, torch.float16: 4 * 2**-11}

#: The same for single products of normally distributed numbers, whose entries are up to about eight times the RMS.
PRODUCTS = {torch.float32: 1e-5, torch.float16: 8 * 2**-11}
