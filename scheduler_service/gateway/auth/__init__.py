"""Who calls, and what may they do? The same answers for every protocol."""
