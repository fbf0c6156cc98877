"""The numbers beyond which a file is refused, with their units and reasons.

They are far above what any adapter needs and far below what hurts a server that reads strangers' files.
"""

HEADER_BYTES = 32 << 20
"""A header of 32 MiB describes about 100 000 tensors; safetensors itself allows 100 MB."""

TENSORS = 65_536
"""Tensors in a file: 128 experts x 3 projections x 60 layers x 2 factors are 46 080."""

AXES = 8
"""Axes of a tensor; a conv3d kernel has five."""

AXIS_LENGTH = 1 << 40
"""Length of one axis; keeps every product below 2**63 once file size is checked."""

NAME_BYTES = 256
"""Length of a tensor's key in a native file."""

JSON_DEPTH = 32
"""Nesting of JSON in the header and in the document."""

JSON_SEPARATORS = 1 << 21
"""Commas and opening brackets of a JSON text, outside of strings: 65 536 tensors with all axes have 0.9 million.
Almost every value takes one, and 32 MiB of nothing else would be gigabytes once parsed."""

SAFE_INTEGER = (1 << 53) - 1
"""The integers that every JSON reader keeps exact (RFC 7493, section 2.2)."""
