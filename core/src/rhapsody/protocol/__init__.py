"""What travels between the program and a worker: batches, frames, failures."""
