"""The disk of both sides: no sockets, no threads below this package."""
