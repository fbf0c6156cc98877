"""Whether a program in any language does what the specification says: spec/conformance.md, executed.

====================== ==================================================================
:mod:`~.vectors`       the test vectors, and what their index expects
:mod:`~.protocol`      what is asked, and in which members a program answers
:mod:`~.program`       a running program that is asked, whatever it does instead of answering
:mod:`~.stderr`        what it writes to its standard error
:mod:`~.judge`         whether an answer is the expected one
:mod:`~.claim`         all of them together: claims and failures
:mod:`~.answer`        loreg as a program that is asked
:mod:`~.__main__`      the same as a process: ``python -m lora_registry.conformance``
====================== ==================================================================
"""
