"""The catalogue's tables, for queries. What makes them is ``migrations``; a test compares the two."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, ForeignKeyConstraint, Index, Integer, MetaData, Table, Text

METADATA = MetaData()

manifests = Table(
    "manifests",
    METADATA,
    Column("digest", Text, primary_key=True),
    Column("blob", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("summary", Text, nullable=False),
    Column("seal", Text, nullable=False, server_default=""),
)
"""One row an adapter, whichever repositories hold it; ``summary`` is canonical JSON, ``seal`` that of :mod:`seal`."""

blob_references = Table(
    "blob_references",
    METADATA,
    Column("manifest", Text, ForeignKey("manifests.digest", ondelete="CASCADE"), primary_key=True),
    Column("blob", Text, primary_key=True),
    Column("size", Integer, nullable=False),
)
"""Every blob that a manifest needs, itself included: what garbage collection keeps."""

holdings = Table(
    "holdings",
    METADATA,
    Column("repository", Text, primary_key=True),
    Column("manifest", Text, ForeignKey("manifests.digest"), primary_key=True),
    Column("created", Text, nullable=False),
    Column("released", Text),
    Index("holdings_by_manifest", "manifest"),
)
"""Which repository holds which manifest; ``released`` tells since when no tag of it points there."""

tags = Table(
    "tags",
    METADATA,
    Column("repository", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("immutable", Boolean(create_constraint=False), nullable=False),
    Column("updated", Text, nullable=False),
    ForeignKeyConstraint(["repository", "manifest"], ["holdings.repository", "holdings.manifest"]),
    Index("tags_by_manifest", "repository", "manifest"),
)
"""Where the tags point; ``generation`` is the sequence number of the event that set the tag."""

events = Table(
    "events",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("transaction", Integer, nullable=False),
    Column("time", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("repository", Text, nullable=False),
    Column("tag", Text),
    Column("before", Text),
    Column("after", Text),
    Column("immutable", Boolean(create_constraint=False), nullable=False),
    Column("previous", Text),
    Column("hash", Text, nullable=False),
    Index("events_by_repository", "repository", "tag"),
)
"""The event log; never changed and never deleted from."""
