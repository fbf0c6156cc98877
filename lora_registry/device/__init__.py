"""The arithmetic of merges and combinations on a GPU, by torch; the same code runs on torch's CPU.

Nothing here knows of files. Importing any module imports torch, so that whoever needs one imports it when a device was
asked for (spec/decisions/0012).

======================= ================================================================
:mod:`~.opening`        the device, or why there is none
:mod:`~.failures`       what torch raises, as errors of this machine
:mod:`~.precision`      float32 that is float32
:mod:`~.elements`       element types, and rounding once
:mod:`~.matrices`       matrices of factors, run by run of their rows
:mod:`~.change`         what targets do to a tensor
:mod:`~.workspace`      room for a run of elements while it is computed
:mod:`~.block`          such a run, made
:mod:`~.figures`        how much of a change survived
:mod:`~.dense`          singular values and TIES of whole matrices
:mod:`~.pipeline`       blocks from host memory to the device and back, all three at a time
======================= ================================================================
"""
