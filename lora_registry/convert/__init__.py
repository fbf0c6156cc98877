"""The hub of the converters: what one is, what it reports, and how it is found."""
