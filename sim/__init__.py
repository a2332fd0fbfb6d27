"""The ISA simulator, the Verilated accelerator and the sessions over both."""
