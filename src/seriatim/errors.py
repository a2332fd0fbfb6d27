"""What can go wrong in a user's run.

Each message quotes the value, the rule and the remedy; the CLI prints it without a traceback.
"""


class SeriatimError(Exception):
    """Base of every error that a user's run can meet."""


class ConfigError(SeriatimError, ValueError):
    """A configuration, format or command-line value breaks a rule."""


class ConvertError(SeriatimError):
    """A module holds something that no net of this project has."""


class CheckpointError(SeriatimError):
    """A checkpoint is missing, truncated, of another network, or holds illegal values."""


class DataError(SeriatimError):
    """A data set is missing or malformed."""


class CompileError(SeriatimError):
    """A network, layer or tile cannot be compiled for this configuration."""


class ProgramError(SeriatimError):
    """An instruction or program breaks a rule of the ISA."""


class ArtefactError(SeriatimError):
    """An artefact is corrupt, or was made for another ISA version or configuration."""


class ToolError(SeriatimError):
    """A tool (compiler, Verilator, yosys) is missing or failed."""


class LinkError(SeriatimError):
    """The link to a board does not work: no such port, unplugged, no answer, another protocol."""


class MachineError(SeriatimError):
    """The accelerator stopped with an error: `cause` is its CSR value, `pc` the byte offset of the instruction."""

    def __init__(self, message: str, *, cause=None, pc: int | None = None):
        super().__init__(message)
        self.cause, self.pc = cause, pc


class MismatchError(SeriatimError):
    """Two levels that must agree do not."""
