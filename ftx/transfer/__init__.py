"""Joins protocol, storage and net; the only package with threads."""
