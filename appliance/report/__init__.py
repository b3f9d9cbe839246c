"""reportd's room: the ledger, and what leaves the box."""
