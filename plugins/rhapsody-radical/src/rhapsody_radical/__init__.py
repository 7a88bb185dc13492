"""The RADICAL-Pilot backend of RHAPSODY.

    backend      the hooks: what the session calls
    resources    reads and checks what the user asks of the pilot       (pure)
    catalogue    the machines that RADICAL-Pilot knows                  (reads its configuration files)
    description  translates a task to RADICAL-Pilot's TaskDescription   (pure)
    ledger       records what the pilot holds, translates its reports   (no engine)
    pilot        the owner's end of the process that holds the pilot
    keeper       guards that process, and ends all that it leaves       (a process of its own)
    bridge       the process that holds RADICAL-Pilot's client          (a process of its own)
    batch_main   runs the functions of one batch on the pilot           (a process of its own)

A user's process imports `backend` alone before a session uses it; only `bridge` imports `radical.pilot`.
"""
