"""ftx beside its peers: `python -m tests.benchmarks`.

One run measures everything: absolute times say little on a machine that does other things as well, so each tool is
compared with the ftx run of the same round. From the bottom up:

    ratios     what is made of the times; pure
    material   what is sent, and whether it has arrived
    places     where both sides run: loopback, or an emulated wide-area link
    processes  servers, and programs that are timed
    peers      the tools, as command lines
    contest    one tool in one place: copy, again, resume
    cases      what is measured where, round by round
    report     results.json, results.md, results.svg
"""
