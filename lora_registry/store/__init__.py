"""Where a registry keeps things: content-addressed blobs and an SQL catalogue."""
