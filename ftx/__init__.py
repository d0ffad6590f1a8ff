"""ftx: resumable, verified, durable file transfer over TCP.

The wire is specified in ``protocol.md``; the guarantees G1 to G12 that the code refers to stand there.
"""

__version__ = "0.1.0"
