"""The RADICAL-Pilot backend of RHAPSODY.

    backend      the hooks: what the session calls
    resources    reads and checks what the user asks of the pilot       (pure)
    catalogue    the machines that RADICAL-Pilot knows                  (reads its configuration files)
    description  a task in RADICAL-Pilot's words                        (pure)
    ledger       what the pilot holds, and what its reports mean        (no engine)
    pilot        the owner's end of the process that holds the pilot
    keeper       stands over that process and ends all that it leaves   (a process of its own)
    bridge       the process that holds RADICAL-Pilot's client          (a process of its own)
    unit         runs the functions of one unit on the pilot            (a process of its own)

`backend` is the only module that a user's process imports of these before a session uses it, and `bridge` the only
one that imports `radical.pilot`.
"""
