"""Messages between Pagewire's processes: what travels over ZeroMQ, and how it is framed."""
