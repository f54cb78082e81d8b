"""What it means for the fleet: OTLP in, roll-ups and reports out. Needs no torch."""
