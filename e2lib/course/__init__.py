"""The course that stands on the library: parameters, runs, sweeps, results, claims, widgets, exercises."""
