"""loreg's converters, one module a format; each is named by an entry point of the group loreg.converters."""
