"""The drill: real trainings and sweeps under seeded faults; nothing may be lost, changed or hang."""
