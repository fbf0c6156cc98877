"""Quantized operators of a graph: which tensor they hold, and how it is changed.

================ =================================================================
:mod:`~.codes`   a matrix as runtimes keep it: codes in blocks with scales
:mod:`~.weight`  the weight that an operator computes with, read and written again
:mod:`~.resolve` which operator holds the tensor that a target changes
:mod:`~.branch`  a change kept beside an operator, as constants
================ =================================================================
"""
