"""How PEFT writes adapters, one noun a module. The door is :mod:`loreg_converters.peft`.

Reading goes down the first table, writing down the second; the third serves both.

====================== ==================================================================
:mod:`~.read`          a folder in, targets and a report out
:mod:`~.files`         what PEFT calls its files
:mod:`~.config`        what each field of the config means, or why it is refused
:mod:`~.keys`          the names of tensors, taken apart
:mod:`~.sites`         the tensors, by the place they belong to
:mod:`~.places`        the places, by the base tensors that they change
:mod:`~.attention`     the projections of a MultiheadAttention, one of which counts twice
:mod:`~.blocks`        factors that hold the blocks of a diagonal
:mod:`~.experts`       stacked experts, in the axis orders of three eras of PEFT
:mod:`~.tokens`        trained rows of an embedding
:mod:`~.targets`       kind, layout, shape and scale of every base tensor
:mod:`~.composed`      the same for LoHa and LoKr
:mod:`~.initial`       what an adapter that changed its base is relative to the base as it was
====================== ==================================================================

====================== ==================================================================
:mod:`~.write`         planned, composed, written, read back, renamed
:mod:`~.plan`          keys, ranks, scales and lists of names that say what an adapter says
:mod:`~.compose`       the config that goes with them
====================== ==================================================================

====================== ==================================================================
:mod:`~.scaling`       the scale, as PEFT computes it, and its inverse
:mod:`~.regex`         patterns of strangers, matched in bounded time
:mod:`~.layouts`       how the base stores a two-dimensional weight
:mod:`~.family`        what a config lets one know about the base's code
:mod:`~.versions`      the version of PEFT that wrote a file
:mod:`~.problems`      what is wrong with a folder, as findings
====================== ==================================================================
"""
