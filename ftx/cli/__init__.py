"""The command line: one module for each command, ``report.py`` for what people and programs see.

Start-up time is part of the interface. ``main.py`` imports click and nothing else of weight; a command's own
module is imported when that command runs or shows its help, and the transfer itself (with xxhash) and tqdm
only when a transfer starts.
"""
