"""`Compiled`: a region as the machine runs it, and its bytes."""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field

import numpy as np

from seriatim import isa
from seriatim.compiler import layout
from seriatim.compiler.ir import Tensor
from seriatim.config import Config
from seriatim.errors import ArtefactError, DataError
from seriatim.formats import Format, Kind

MAGIC = b"SERIPROG"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in memory. `role`: input, output or inner (an activation that only the region's layers read)."""

    tensor: Tensor
    address: int
    size: int
    role: str


@dataclass(frozen=True)
class LayerInfo:
    """A row of the layer table. `mark` is the number of the layer's MARK, None where there is none; `w` and `a` are bits;
    `k` products are summed for each output; `macs` and `binary_macs` are the PyTorch layer's; `steps` is the words that the
    array (or the pool) takes, and `cycles` what the compiler's model expects its counters to show (0 where it has no MARK).
    `first`: numbers of its first load, execute and store instruction, each in its queue. `engine` is what runs it, and `reason`
    why (of maximum pools there is nothing to say)."""

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    mark: int | None
    w: int
    a: int
    k: int
    macs: int
    binary_macs: int
    out: str
    cycles: int
    steps: int
    wgt_bytes: int
    first: tuple[int, int, int]
    engine: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Compiled:
    """One region's program with its memory.

    Members
    -------
    program : instructions, to be put at `program_address`.
    image : the memory's first bytes, from address 0: weights and params.
    places : every tensor of the region by name; each has its own bytes.
    layers : the layer table.
    inputs, outputs : names of the region's tensors, in its order.
    read_range, write_range : `[first, beyond last)` bytes for the limit registers.
    memory_bytes : size of everything, the program included.
    cycles : from the start to the interrupt, by the compiler's model.
    notes : what a user should know, such as layers without counters of their own.
    """

    config: Config
    program: bytes
    program_address: int
    image: bytes
    places: dict[str, Place]
    layers: tuple[LayerInfo, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    read_range: tuple[int, int]
    write_range: tuple[int, int]
    memory_bytes: int
    cycles: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def marks(self) -> int:
        """Layers that have a row in the profile memory."""
        return sum(layer.mark is not None for layer in self.layers)

    def memory(self, inputs: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """The whole memory (uint8) before a run, with `inputs` (codes by name) in place."""
        memory = np.zeros(self.memory_bytes, np.uint8)
        memory[:len(self.image)] = np.frombuffer(self.image, np.uint8)
        memory[self.program_address:self.program_address + len(self.program)] = np.frombuffer(self.program, np.uint8)
        for name, codes in (inputs or {}).items():
            self.write(memory, name, codes)
        return memory

    def pack(self, name: str, codes: np.ndarray) -> bytes:
        """An input as bytes for its place. Raises DataError."""
        return layout.pack(self._place(name).tensor, codes, self.config)

    def unpack(self, name: str, data) -> np.ndarray:
        """Codes (N, C, H, W) of a tensor from the bytes of its place."""
        return layout.unpack(self._place(name).tensor, data, self.config)

    def write(self, memory: np.ndarray, name: str, codes: np.ndarray) -> None:
        place = self._place(name)
        memory[place.address:place.address + place.size] = np.frombuffer(self.pack(name, codes), np.uint8)

    def read(self, memory: np.ndarray, name: str) -> np.ndarray:
        place = self._place(name)
        return self.unpack(name, memory[place.address:place.address + place.size])

    def _place(self, name: str) -> Place:
        if name not in self.places:
            raise DataError(f"tensor {name!r}: this program has {', '.join(self.places)}")
        return self.places[name]

    def to_bytes(self) -> bytes:
        """Everything in one blob with a checksum."""
        head = {
            "isa": isa.VERSION, "config": asdict(self.config), "program_address": self.program_address,
            "program_bytes": len(self.program), "image_bytes": len(self.image),
            "places": [_place_to_json(place) for place in self.places.values()],
            "layers": [asdict(layer) for layer in self.layers],
            "inputs": self.inputs, "outputs": self.outputs, "read_range": self.read_range, "write_range": self.write_range,
            "memory_bytes": self.memory_bytes, "cycles": self.cycles, "notes": self.notes,
        }
        text = json.dumps(head).encode()
        body = MAGIC + struct.pack("<I", len(text)) + text + self.program + self.image
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Compiled":
        """Raises ArtefactError where `data` is not what `to_bytes` wrote, or was made for another ISA version."""
        body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
            raise ArtefactError(f"a program of {len(data)} bytes is damaged: its checksum does not match; compile again")
        at = len(MAGIC) + 4
        size, = struct.unpack("<I", body[len(MAGIC):at])
        head = json.loads(body[at:at + size])
        if head["isa"] != isa.VERSION:
            raise ArtefactError(f"a program for version {head['isa']} of the instruction set: this is {isa.VERSION}; "
                                "compile again")
        start = at + size
        middle = start + head["program_bytes"]
        places = [_place_from_json(row) for row in head["places"]]
        return cls(
            Config(**head["config"]), body[start:middle], head["program_address"], body[middle:],
            {place.tensor.name: place for place in places},
            tuple(LayerInfo(**row | {name: tuple(row[name]) for name in ("shape", "first")}) for row in head["layers"]),
            tuple(head["inputs"]), tuple(head["outputs"]), tuple(head["read_range"]), tuple(head["write_range"]),
            head["memory_bytes"], head["cycles"], tuple(head["notes"]),
        )


def _place_to_json(place: Place) -> dict:
    fmt = place.tensor.format
    row = {"name": place.tensor.name, "shape": place.tensor.shape, "layout": place.tensor.layout, "address": place.address,
           "size": place.size, "role": place.role, "format": None}
    if fmt is not None:
        row["format"] = [fmt.kind.name, fmt.bits, fmt.zero, fmt.residues, fmt.signed, fmt.table]
    return row


def _place_from_json(row: dict) -> Place:
    fmt = row["format"]
    if fmt is not None:
        kind, bits, zero, residues, signed, table = fmt
        fmt = Format(Kind[kind], bits, zero, residues, signed, tuple(table))
    return Place(Tensor(row["name"], tuple(row["shape"]), fmt, row["layout"]), row["address"], row["size"], row["role"])
