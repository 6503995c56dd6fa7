"""The drill: real trainings and sweeps under seeded faults; nothing is lost, changed or hangs."""
