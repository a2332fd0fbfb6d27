"""One file that holds a compiled network: a zip with an exact checksum at its end.

| member          | content                                                                                          |
|-----------------|--------------------------------------------------------------------------------------------------|
| `manifest.json` | ISA version, config and its hash, formats, layer table, what stays on the CPU, each member's sha256 |
| `library.so`    | TVM's library: the CPU part, and every region's program as a constant                            |
| `programN.bin`  | the program of region N, byte for byte what `library.so` hands to `seriatim.run`                 |

The archive's comment is the sha256 of every byte before it, so that no byte of the file flips unnoticed; `unzip` still opens it.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from seriatim.compiler import runtime
from seriatim.compiler.ir import Region
from seriatim.errors import ArtefactError
from seriatim.formats import Format
from seriatim.sim import files

FORMAT = "seriatim artefact 1"
MANIFEST, LIBRARY = "manifest.json", "library.so"
DIGEST_CHARS = 64
EPOCH = 1980, 1, 1, 0, 0, 0
"""Time of every member: the same network gives the same file."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def program_name(index: int) -> str:
    return f"program{index}.bin"


@dataclass
class Artefact:
    """A compiled network. `regions` is there where it was compiled in this process; the manifest describes them everywhere."""

    manifest: dict
    library: bytes
    programs: tuple[bytes, ...]
    regions: tuple[Region, ...] = field(default=(), repr=False)

    @property
    def cpu_fallback(self) -> list[dict[str, str]]:
        """Name, operator and reason of everything that runs on the CPU."""
        return self.manifest["cpu_fallback"]

    @property
    def layers(self) -> list[dict]:
        """The layer table: a row for each layer of each region, in order of execution."""
        return [layer for region in self.manifest["regions"] for layer in region["layers"]]

    @cached_property
    def _machine(self):
        import tvm  # heavy: a process that only looks at the manifest does without
        from tvm import relax

        runtime.register()
        with tempfile.TemporaryDirectory(prefix="seriatim-") as folder:
            path = Path(folder, LIBRARY)
            path.write_bytes(self.library)
            return relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())

    def run(self, inputs, executor: runtime.Executor | None = None):
        """Outputs (int32 codes, an array or a tuple) for the network's inputs (codes, an array or a list of them).

        Programs go to `executor`, or to the one that `runtime.use` set. Raises whatever that raises, and ValueError where an
        input has another shape than the network's, or holds what is no code of its format.
        """
        inputs = [np.asarray(array) for array in (inputs if isinstance(inputs, list | tuple) else [inputs])]
        self._check(inputs)
        main = self._machine["main"]
        with runtime.use(executor) if executor else nullcontext():
            return runtime.call(main, inputs)

    def _check(self, inputs: list[np.ndarray]) -> None:
        wanted = self.manifest["inputs"]
        if len(inputs) != len(wanted):
            raise ValueError(f"{len(inputs)} inputs: this network takes {len(wanted)}")
        for codes, spec in zip(inputs, wanted):
            if list(codes.shape) != spec["shape"]:
                raise ValueError(f"input {spec['name']} of shape {codes.shape}: this network takes {tuple(spec['shape'])}")
            if "format" in spec and codes.size:
                fmt = Format.parse(spec["format"])
                if codes.min() < fmt.lo or codes.max() > fmt.hi:
                    raise ValueError(
                        f"input {spec['name']} holds {codes.min()} to {codes.max()}: codes of {fmt} are {fmt.lo} to {fmt.hi}"
                    )

    def members(self) -> dict[str, bytes]:
        return {LIBRARY: self.library} | {program_name(i): program for i, program in enumerate(self.programs)}

    def to_bytes(self) -> bytes:
        """The file's content. The manifest is written last, with the checksums of the others."""
        members = self.members()
        manifest = self.manifest | {"format": FORMAT, "sha256": {name: sha256(data) for name, data in members.items()}}
        members[MANIFEST] = json.dumps(manifest, indent=1).encode()
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED, 1)
            archive.comment = b"0" * DIGEST_CHARS
        body = file.getvalue()[:-DIGEST_CHARS]
        return body + sha256(body).encode()

    def save(self, path: str | os.PathLike) -> Path:
        """Write the file, whole or not at all."""
        return files.write(path, self.to_bytes())


def load(path: str | os.PathLike, isa_version: int, config_hash: int) -> Artefact:
    """The artefact in a file, checked byte for byte and against this machine.

    Raises ArtefactError where the file is missing, damaged, or was compiled for another ISA version or configuration.
    """
    artefact = read(path)
    manifest = artefact.manifest
    again = "compile the network again with this version of Seriatim and this machine's configuration"
    if manifest["isa_version"] != isa_version:
        raise ArtefactError(f"{path}: made for ISA version {manifest['isa_version']}, this machine has {isa_version}; {again}")
    if manifest["config_hash"] != config_hash:
        raise ArtefactError(
            f"{path}: made for configuration {manifest['config_hash']:#010x} ({manifest['config_name']}), "
            f"this machine is {config_hash:#010x}; {again}"
        )
    return artefact


def read(path: str | os.PathLike) -> Artefact:
    """The artefact in a file, for whatever machine it was made. Raises ArtefactError where it is missing or damaged."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}; compile the network first") from error
    body, stated = data[:-DIGEST_CHARS], data[-DIGEST_CHARS:]
    if not data.startswith(b"PK"):
        raise ArtefactError(f"{path}: {len(data)} bytes that are no zip archive; give a file that `seriatim compile` wrote")
    if sha256(body).encode() != stated:
        raise ArtefactError(
            f"{path}: its {len(body)} bytes have sha256 {sha256(body)[:16]}, the file states {_printable(stated)}: "
            "it was damaged or truncated; copy it again, or compile it again"
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop(MANIFEST, b"{}"))
    if manifest.get("format") != FORMAT:
        raise ArtefactError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT!r}; compile it again")
    for name, wanted in manifest["sha256"].items():
        if sha256(members.get(name, b"")) != wanted:
            raise ArtefactError(f"{path}: member {name} is not the one that the manifest states; compile it again")
    programs = tuple(members[program_name(i)] for i in range(len(manifest["regions"])))
    return Artefact(manifest, members[LIBRARY], programs)


def _printable(digest: bytes) -> str:
    text = digest[:16].decode("ascii", "replace")
    return text if text.isalnum() else "none"
