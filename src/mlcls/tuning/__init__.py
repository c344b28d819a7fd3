"""A measured search for the settings that serve a model best on one machine: `mlcls tune`."""
