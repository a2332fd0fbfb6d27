"""The Tang Primer 20K on its dock, as amaranth-boards has it, for the nextpnr of today."""

from amaranth_boards.tang_primer_20k import TangPrimer20kDockPlatform


class TangPrimer(TangPrimer20kDockPlatform):
    """Routed by nextpnr-himbaechel. Amaranth's script is for the nextpnr-gowin of before, two of whose options have other names
    now."""

    @property
    def command_templates(self):
        return [template.replace("--family ", "--vopt family=").replace("--cst ", "--vopt cst=")
                for template in super().command_templates]
