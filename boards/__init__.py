"""Boards: their machines and bitstreams, the shell on the FPGA, the host's link to it, the simulated board."""
