"""rejectd's room: the belt, the gate, deadlines, dispositions, alarms. No numpy, nothing slow."""
