"""Sockets: no files below this package, except the two keys of ``peers``."""
