"""Delta patches: one model file set made of another, byte by byte, in both directions (``spec/lpatch.md``).

=================== ===========================================================
:mod:`~.words`      differences of the bits of two arrays
:mod:`~.product`    the change of an adapter, the same on every machine
:mod:`~.block`      what a patch holds, compressed
:mod:`~.runs`       how bytes are made of the other side's
:mod:`~.header`     what a patch says: files, products, runs
:mod:`~.places`     where the tensors of an ONNX model lie in its files
:mod:`~.recipes`    which tensors an adapter explains
:mod:`~.discover`   the factors, where the adapter is not at hand
:mod:`~.layout`     which bytes of one side come from where on the other
:mod:`~.write`      making a patch
:mod:`~.rebuild`    applying and reverting it
=================== ===========================================================
"""
