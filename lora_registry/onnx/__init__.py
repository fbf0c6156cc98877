"""ONNX models: which initializer is which tensor of the checkpoint, and how to change it without torch.

Read in this order: ``model`` (open), ``sites`` (who reads an initializer, and how), ``names`` and ``values``
(the resolver's rules), ``resolve`` (the chain), ``patch`` (the edits), ``save`` (the files).
"""
