"""PS3.8 and PS3.7 on bytes: no sockets, no clocks, no tasks."""
