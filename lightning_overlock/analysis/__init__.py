"""What a researcher wants to see of a network, as arrays and as figures.

Every function takes models and tensors and returns arrays, rows of a table or a matplotlib
`Figure`; nothing is shown, trained or written to disk, and models are left as they were.
"""
