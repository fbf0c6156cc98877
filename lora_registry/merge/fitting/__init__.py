"""Does this adapter belong on this base? Asked before a byte is written.

===================== =============================================================
:mod:`~.fit`          the answer: each target and the tensors that it changes
:mod:`~.comparison`   what keeps a target from changing a tensor
:mod:`~.missing`      why a target finds none
:mod:`~.expert_names` how checkpoints name the experts that models stack
:mod:`~.stacked`      the change of a stack, as changes of the tensors in its place
:mod:`~.growing`      targets that make a table longer
:mod:`~.growth`       a base with room for their rows
:mod:`~.against`      the same question to a base of any form
:mod:`~.pin`          an adapter that states which base it was made for
===================== =============================================================
"""
