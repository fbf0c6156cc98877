"""The base back from a merged checkpoint, byte by byte.

================ =============================================
:mod:`~.patch`   the reverse patch of a merge, made
:mod:`~.runs`    which bytes of the base the merged files hold
:mod:`~.header`  what it says about itself
:mod:`~.block`   what it holds
:mod:`~.unmerge` the base, restored
================ =============================================
"""
