"""Where a registry keeps things: content-addressed blobs and an SQL catalogue (``spec/registry.md``).

==================== ===================================================================
:mod:`~.location`    which folder is the registry
:mod:`~.layout`      where its parts lie in that folder
:mod:`~.reference`   how people name an adapter
:mod:`~.blobs`       content-addressed files
:mod:`~.copying`     taking a blob out, verified
:mod:`~.manifest`    the immutable record of one push, a blob itself
:mod:`~.record`      what lists and ``loreg show`` tell without opening a file
:mod:`~.events`      the event log: what was done, each event sealed with the one before
:mod:`~.state`       what a log of events adds up to
:mod:`~.journal`     the event log as a file
:mod:`~.seal`        damage of a row is noticed
:mod:`~.tables`      the tables of the catalogue
:mod:`~.migrations`  how those tables came to be
:mod:`~.database`    what is particular to SQLite
:mod:`~.entries`     a row of the catalogue, made from blobs
:mod:`~.catalogue`   questions to the rows
:mod:`~.writer`      changes to the rows, each an event
:mod:`~.lock`        one lock for the whole registry
:mod:`~.store`       all of these opened together, and the transactions that join them
:mod:`~.gc`          taking away what nothing names
:mod:`~.fsck`        everything checked against everything
:mod:`~.reindex`     the catalogue made again from blobs and journal
==================== ===================================================================
"""
