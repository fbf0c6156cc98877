"""The arithmetic, in numpy: what a target does to its base tensor, and what can be said about the result.

====================== ==================================================================
:mod:`~.arrays`        tensors as arrays, and one rounding to any dtype
:mod:`~.change`        W' from W and a target, block by block
:mod:`~.factors`       the matrix of a target's change, from its factors
:mod:`~.matrices`      matrices that are never made whole
:mod:`~.mergeable`     what no merge can hold, refused by name
:mod:`~.rows`          parts of fused tensors, and other orders of their outputs
:mod:`~.fidelity`      how much of a change the output dtype kept
:mod:`~.fingerprint`   identity of a base tensor's values
:mod:`~.signs`         the fixed signs of the probe certificate
:mod:`~.probe`         the certificate: eight numbers for each change
:mod:`~.agreement`     whether two adapters make the same change
:mod:`~.core`          sums of low-rank changes, and their singular values from a small core
:mod:`~.slices`        the change of a target as matrices in logical order, and back
:mod:`~.spectrum`      singular values, norm and stable rank of a change
:mod:`~.truncation`    how much to keep: a rank or a share of the energy
:mod:`~.dense`         the largest singular values of a whole matrix
:mod:`~.noise`         what rounding adds to a matrix
:mod:`~.lowering`      LoHa, LoKr and sparse changes as two factors
:mod:`~.retention`     what an operation kept of a change, as figures
:mod:`~.lineage`       what an adapter made from others says about itself
:mod:`~.combinable`    what can be added up, and what is refused by name
:mod:`~.recipe`        how adapters are to be combined
:mod:`~.election`      ties and dare element by element, each convention by its name
:mod:`~.mixture`       the elementwise methods on one tensor
:mod:`~.orthogonalize` a change without the directions of others
:mod:`~.combine`       one adapter out of several; subtract and negate
:mod:`~.resize`        fewer ranks, with the error certified
:mod:`~.similarity`    cosine, overlap and interference of two adapters
:mod:`~.extract`       the adapter between two checkpoints
:mod:`~.base_model`    what arithmetic and fitting need to know of a base model
:mod:`~.prefix`        the one prefix between the names of an adapter and of a base
:mod:`~.tied`          what a merge does to tied tensors
====================== ==================================================================
"""
