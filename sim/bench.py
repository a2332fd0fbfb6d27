"""`seriatim bench`: the figures that the README quotes, measured in one run and written to `build/bench.json`."""

import json
import os
import time
from pathlib import Path

from seriatim.config import Config
from seriatim.errors import ConfigError


def area() -> dict:
    """LUT4s of the array and of the requantisation unit after `synth_ecp5`, for a small array of full-length dot products."""
    from seriatim.hw.array import Array
    from seriatim.hw.requant import Requant
    from seriatim.hw.synth import ecp5_cells, lut4

    config = Config(m=2, n=2, k=64)
    array, requant = ecp5_cells(Array(config), "array"), ecp5_cells(Requant(lanes=config.n, tag_bits=1), "requant")
    return {"array": str(config), "array_lut4": lut4(array), "array_lut4_per_binary_mac": round(lut4(array) / config.peak, 3),
            "requant_lut4_per_lane": round(lut4(requant) / config.n), "requant_multipliers": requant.get("MULT18X18D", 0)}


def speed() -> dict:
    """Random full-range data through a 3x3 layer of 64 channels on the default machine: cycles, utilisation, simulation speed."""
    import numpy as np

    from seriatim.compiler.codegen import generate
    from seriatim.compiler.ir import Conv, Region, Requant, Tensor, interpret
    from seriatim.formats import Format
    from seriatim.sim.driver import opener
    from seriatim.sim.executor import execute

    rng, config = np.random.default_rng(0), Config()
    uint8, bipolar = Format.parse("uint8"), Format.parse("bipolar1")
    x, out = (Tensor(name, (1, 64, 56, 56), uint8) for name in ("x", "out"))
    w = rng.choice(np.array([-1, 1], np.int32), (64, 64, 3, 3))
    requant = Requant(np.full(64, 1 << 16, np.int32), np.full(64, 1 << 30, np.int64), 23, 0, 255)
    layer = Conv("conv", x, uint8, w, bipolar, (1, 1), (1, 1, 1, 1), (1, 1), 1, requant, None, out)
    region = Region((x,), (out,), (layer,))
    codes = {"x": rng.integers(0, 256, x.shape)}
    start = time.perf_counter()
    compiled = generate(region, config)
    compile_s = time.perf_counter() - start
    run = execute(compiled, codes, opener("rtl"))
    exact = bool((run.tensors["out"] == interpret(region, codes)["out"]).all())
    return {"layer": "3x3, 64 to 64 channels, 56x56, W1A8", "bit_exact": exact,
            "cycles": run.counts.cycles, "utilisation": round(layer.binary_macs / run.counts.cycles / config.peak, 4),
            "cycles_per_second": round(run.counts.cycles / run.counts.wall_s), "compile_s": round(compile_s, 3)}


BENCHES = {"speed": speed, "area": area}


def main(args) -> None:
    """Runs the named measurements (default: all)."""
    unknown = set(args.names) - BENCHES.keys()
    if unknown:
        raise ConfigError(f"no measurement {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}")
    results = {}
    for name in args.names or BENCHES:
        print(f"{name}: {BENCHES[name].__doc__.splitlines()[0]}", flush=True)
        results[name] = BENCHES[name]()
        for key, value in results[name].items():
            print(f"  {key:28} {value}", flush=True)
    path = Path(args.out or "build", "bench.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"written to {path}")
