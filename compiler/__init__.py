"""From an exported network to an artefact: patterns, tiles, schedule, instructions."""
