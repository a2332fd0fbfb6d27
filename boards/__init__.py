"""Sessions and shells, one folder per board."""
