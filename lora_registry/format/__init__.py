"""The file format, in standard library only, so that a trainer can vendor this folder.

=========================== ============================================================
:mod:`~.container`          the strict safetensors profile: framing, offsets, limits
:mod:`~.canonical`          JSON with one spelling
:mod:`~.document`           the adapter's metadata as one JSON document, and back
:mod:`~.segment_record`     the segments of a fused tensor in it
:mod:`~.rules`              every checkable rule with its id in the specification
:mod:`~.target_rules`       those about one target, field by field
:mod:`~.shape_rules`        those about its fields and the shapes of its tensors together
:mod:`~.segment_rules`      those about the segments of a fused tensor
:mod:`~.description_rules`  those about what only describes
:mod:`~.data_rules`         the rules that only the data can break
:mod:`~.features`           what a file may need beyond the core
:mod:`~.identity`           the content digest, and the root digest of a base
:mod:`~.reader`             native file to adapter, lazily
:mod:`~.writer`             adapter to canonical bytes
:mod:`~.edit`               a changed copy, unless the file forbids it
:mod:`~.files`              writes that a crash cannot spoil
:mod:`~.temporary`          what is being written, and what the killed left
:mod:`~.limits`             the numbers
=========================== ============================================================
"""
