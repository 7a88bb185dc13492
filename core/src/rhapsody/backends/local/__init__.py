"""The local backend: threads, processes and executables of this machine."""
