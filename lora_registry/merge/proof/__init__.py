"""Is a checkpoint base + adapter? Recomputed in float64, whoever merged it, with names for what went wrong.

======================== ==============================================================
:mod:`~.recompute`       the answer for a whole checkpoint
:mod:`~.expectation`     which tensors it has to hold
:mod:`~.matrix`          its tensors as matrices, of which rows are read or computed
:mod:`~.judge`           whether a tensor holds what it has to
:mod:`~.judgement`       what is said of it
:mod:`~.stays_quantized` the same of a checkpoint that is quantized itself
:mod:`~.judge_encoded`   whether a weight that was quantized again holds what it has to
:mod:`~.untouched`       tensors that are to be the base's
:mod:`~.formula`         the changes of the format, in float64
:mod:`~.outcome`         what sound arithmetic makes of them
:mod:`~.interval`        numbers known up to a bound
:mod:`~.nearest`         rounding by the definitions of the types
:mod:`~.roundings`       orders of rounding, by name
:mod:`~.misreadings`     mistakes, by name
======================== ==============================================================
"""
