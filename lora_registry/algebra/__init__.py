"""Arithmetic with whole adapters, from their factors alone: sums, truncation, comparison, extraction; numpy.

Nothing of the size of a base tensor is formed where the factors suffice: a sum of low-rank changes is a low-rank
change, and its singular values are those of a core as small as the ranks.

====================== ==================================================================
:mod:`~.core`          sums of low-rank changes, and their singular values from a small core
:mod:`~.slices`        the change of a target as matrices in logical order, and back
:mod:`~.spectrum`      singular values, norm and stable rank of a change
:mod:`~.truncation`    how much to keep: a rank or a share of the energy
:mod:`~.dense`         the largest singular values of a whole matrix
:mod:`~.arithmetic`    where such matrices are computed: numpy, or a device
:mod:`~.noise`         what rounding adds to a matrix
:mod:`~.lowering`      LoHa, LoKr and sparse changes as two factors
:mod:`~.retention`     what an operation kept of a change, as figures
:mod:`~.lineage`       what an adapter made from others says about itself
:mod:`~.combinable`    what can be added up, and what is refused by name
:mod:`~.recipe`        how adapters are to be combined
:mod:`~.election`      ties and dare element by element, each convention by its name
:mod:`~.mixture`       the elementwise methods on one tensor
:mod:`~.replacements`  rows of one table from several adapters
:mod:`~.orthogonalize` a change without the directions of others
:mod:`~.combine`       one adapter out of several; subtract and negate
:mod:`~.resize`        fewer ranks, with the error certified
:mod:`~.similarity`    cosine, overlap and interference of two adapters
:mod:`~.extract`       the adapter between two checkpoints
====================== ==================================================================
"""
