"""The process pool: worker processes that can be killed one by one."""
