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
:mod:`~.base_model`    what arithmetic and fitting need to know of a base model
:mod:`~.prefix`        the one prefix between the names of an adapter and of a base
:mod:`~.tied`          what a merge does to tied tensors
====================== ==================================================================
"""
