"""The quantisers: one interface (`base`), one registry (`registry`), one module for each family."""
