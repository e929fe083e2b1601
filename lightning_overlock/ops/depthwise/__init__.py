"""Depthwise convolution by several kernels at once."""
