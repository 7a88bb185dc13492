"""Between core and a backend: capabilities, capacity, events, calls of hooks, discovery."""
