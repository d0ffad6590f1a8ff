"""The wire and the pure core: no sockets, files, threads, clocks or logging below this package."""
