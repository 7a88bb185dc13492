"""What drives one backend: the backlog, batching, the life of its tasks, deadlines."""
