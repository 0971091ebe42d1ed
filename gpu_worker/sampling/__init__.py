"""Which token follows: rules, penalties, filters and draws, and what is told about them."""
