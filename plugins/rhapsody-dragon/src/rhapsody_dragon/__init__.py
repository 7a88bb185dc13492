"""RHAPSODY on the Dragon runtime.

General layout, from the hooks down; a module imports only those below it:

    v3, v2, v1          the backends that users name: presets of the two parts
    backend             the hooks; the life of a backend; which part runs a task
    worker_group        part one: which worker has which batch, what becomes of it, and how tasks of it are stopped
      worker_processes  their processes and queues: started, fed, drained, replaced, ended
    job_launcher        part two: each task as a job with processes and files of its own, and its turn
    processors          what both parts take processors and GPUs from
    runtime             the Dragon runtime of this process: found, shared, ended
      guard             the process that owns a runtime of ours, and outlives the user's to end it
      startup_checks    what a start needs of the machine, and how a failed one is explained
    exit_watch          how processes are found, and how their end becomes known
    worker_main         what runs inside Dragon's processes
    messages            what the two sides say to each other, and the queues that carry it
    task_options        from a task to Dragon's terms and back, without the engine

Dragon is imported inside functions, and so only once a backend starts.
"""
