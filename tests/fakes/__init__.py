"""Stand-ins of vendor libraries that behave, and punish what the real ones punish."""
