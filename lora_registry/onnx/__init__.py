"""ONNX models: which initializer is which tensor of the checkpoint, and how to change it without torch.

==================== ===============================================
:mod:`~.model`       an ONNX model opened for reading
:mod:`~.wellformed`  is it a graph that can be worked on?
:mod:`~.normal_form` no functions, weights as initializers
:mod:`~.external`    the data files beside it
:mod:`~.checksums`   the digests that a graph may hold of them
:mod:`~.manifest`    the note that loreg's exporter leaves
:mod:`~.scope`       the module that a node came from
:mod:`~.sites`       who reads an initializer, and how
:mod:`~.window`      the part of an initializer that is meant
:mod:`~.hit`         what one rule says
:mod:`~.names`       the rules that go by names
:mod:`~.builder`     the one of onnxruntime-genai's builder
:mod:`~.values`      the rule that goes by values
:mod:`~.evidence`    what the base checkpoint says
:mod:`~.candidate`   an initializer that may hold a tensor
:mod:`~.orientation` whether it is transposed
:mod:`~.refusal`     why a target cannot be resolved
:mod:`~.resolve`     the chain of all these
:mod:`~.resolution`  its result
:mod:`~.pairs`       two models as a checkpoint and a tuned one
:mod:`~.stored`      a target as the initializer stores it
:mod:`~.patch`       edits on the graph
:mod:`~.writer`      the bytes of an edited model
:mod:`~.save`        its files, whole or not at all
:mod:`~.slots`       a switchable model: slots that take any adapter
:mod:`~.quantized`   quantized operators, and what changes them
==================== ===============================================
"""
