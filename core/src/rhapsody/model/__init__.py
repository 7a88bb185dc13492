"""Pure data: tasks, their states, what they need, how they end. No asyncio, no I/O, no engine."""
