"""ONNX models: which initializer is which tensor of the checkpoint, and how to change it without torch.

Read in this order: ``model`` (open, with ``external``), ``sites`` (who reads an initializer, and how), ``names``
and ``values`` (the resolver's rules), ``resolve`` (the chain, with ``candidate``, ``orientation``, ``evidence`` and
``refusal``), ``resolution`` (its result), ``patch`` (the edits), ``save`` and ``writer``
(the files).
"""
