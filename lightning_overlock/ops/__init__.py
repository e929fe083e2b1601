"""Pure functions on tensors: the operations that the layers are built on."""
