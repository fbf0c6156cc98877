"""What an adapter holds that somebody should know before using it.

======================= ================================================================
:mod:`~.rules`          every rule as data: id, severity, title, why, how to mend it
:mod:`~.report`         findings, what was looked at, and what could not be
:mod:`~.structure`      the format's own rules, on an adapter from anywhere
:mod:`~.spectrum`       norm and rank of a change, from the factors alone
:mod:`~.measure`        one pass over one target's numbers
:mod:`~.tensors`        what those numbers say
:mod:`~.reach`          targets whose effect goes beyond one layer's matrices
:mod:`~.provenance`     who made it, on what, and under which license
:mod:`~.licenses`       what looks like an SPDX expression
:mod:`~.privacy`        secrets, paths and people in the metadata
:mod:`~.base`           what comparing the adapter with a base model said
:mod:`~.engine`         all of it in one call
======================= ================================================================

The rules are described in ``spec/audit-rules.md``; a test asserts that page and :mod:`~.rules` agree.
"""
