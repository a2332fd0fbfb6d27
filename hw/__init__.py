"""The accelerator in Amaranth, and its conversion to Verilog."""
