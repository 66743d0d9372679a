"""The rows of table.py: what is quantized, how, and by whom."""

import dataclasses


@dataclasses.dataclass
class Row:
    name: str
    scheme: str
    solver: str
    options: list | dict = dataclasses.field(default_factory=list)  # flags of nibble quantize, or what peer.py takes
    calibrated: bool = True
    peer: str = ""
    activations: str = "int16"  # of the judge

    @property
    def kind(self):
        """What the scheme's codes stand for."""
        return KINDS[self.scheme]


def flags(scheme, group=None, symmetric=True):
    out = ["--scheme", scheme]
    if group:
        out += ["--group-size", str(group)]
    if not symmetric:
        out += ["--no-symmetric"]
    return out


KINDS = {"float": "floats", "fp8": "floats of 8 bits, a scale a row", "fp8-block": "floats of 8 bits, a scale for 128 x 128",
         "nf4": "table of 16 values", "fp4": "table of 16 values", "mixed-4.5bpw": "uniform, bits by module",
         "int8-row": "uniform, symmetric, a scale a row"}
KINDS |= {f"int{bits}-{form}-g{group}": f"uniform, {form}metric" for bits in range(2, 9) for form in ("sym", "asym")
          for group in (32, 64)}
KINDS |= {"log4": "powers of two", "log3": "powers of two", "mxfp4": "floats of 4 bits, scales powers of two for 32",
          "nvfp4": "floats of 4 bits, scales of 8 bits for 16"}
KINDS |= {name: "GGUF blocks, uniform, symmetric" for name in ("q4_0", "q5_0", "q6_k")}
KINDS |= {name: "GGUF blocks, uniform with minima" for name in ("q4_k", "q5_k")}

ROWS = [Row("source", "float", "source", calibrated=False)]

SCHEMES = {
    "int4-sym-g64": flags("int4", 64),
    "int4-sym-g32": flags("int4", 32),
    "int4-asym-g64": flags("int4", 64, symmetric=False),
    "int4-asym-g32": flags("int4", 32, symmetric=False),
    "int3-sym-g64": flags("int3", 64),
    "int2-sym-g64": flags("int2", 64),
    "int8-sym-g64": flags("int8", 64),
    "int5-sym-g64": flags("int5", 64),
    "int6-sym-g64": flags("int6", 64),
    "nf4": flags("nf4"),
    "fp4": flags("fp4"),
    "mxfp4": flags("mxfp4"),
    "nvfp4": flags("nvfp4"),
    "log4": flags("log4", 64),
    "log3": flags("log3", 64),
    "q4_0": flags("q4_0"),
    "q5_0": flags("q5_0"),
    "q4_k": flags("q4_k"),
    "q5_k": flags("q5_k"),
    "q6_k": flags("q6_k"),
}
SUPERBLOCKS = ("q4_k", "q5_k", "q6_k")  # only rounded, and without calibration data
LEARNED = ("int4-sym-g64", "int3-sym-g64", "int2-sym-g64")

for scheme, options in SCHEMES.items():
    if scheme in SUPERBLOCKS:
        ROWS.append(Row(f"{scheme}-rtn", scheme, "rtn", options, calibrated=False))
        continue
    ROWS.append(Row(f"{scheme}-absmax", scheme, "absmax", [*options, "--method", "rtn", "--no-search-scale"], calibrated=False))
    ROWS.append(Row(f"{scheme}-rtn", scheme, "rtn", [*options, "--method", "rtn"]))
    if scheme in LEARNED:
        ROWS.append(Row(f"{scheme}-learned", scheme, "learned", [*options, "--method", "learned"]))
    ROWS += [Row(f"{scheme}-{method.replace('+', '-')}", scheme, method, [*options, "--method", method])
             for method in ("awq", "gptq", "awq+gptq")]

ROWS += [
    Row("mixed-4.5bpw-gptq", "mixed-4.5bpw", "gptq",
        ["--budget", "4.5bpw", "--candidates", "int3", "--candidates", "int4", "--candidates", "int5", "--candidates", "int6"]),
    Row("fp8-rtn", "fp8", "rtn", ["--scheme", "fp8", "--method", "rtn"]),
    Row("fp8-gptq", "fp8", "gptq", ["--scheme", "fp8", "--method", "gptq"]),
    Row("fp8-block-rtn", "fp8-block", "rtn", ["--scheme", "fp8-block", "--method", "rtn"], calibrated=False),
]
for method in ("rtn", "smoothquant"):
    ROWS += [Row(f"int8-row-{method}-{activations}", "int8-row", f"{method}, {activations} activations",
                 ["--scheme", "int8", "--group-size", "0", "--method", method], activations=activations)
             for activations in ("int16", "int8")]

GRID = {"bits": 4, "group_size": 64, "symmetric": True}
ROWS += [
    Row("gptqmodel-gptq-int4-sym-g64", "int4-sym-g64", "gptq", GRID, peer="gptqmodel"),
    Row("gptqmodel-gptq-int3-sym-g64", "int3-sym-g64", "gptq", {**GRID, "bits": 3}, peer="gptqmodel"),
    Row("llmcompressor-gptq-int4-sym-g64", "int4-sym-g64", "gptq", GRID, peer="llmcompressor"),
    Row("llmcompressor-awq-int4-sym-g64", "int4-sym-g64", "awq", {**GRID, "awq": True}, peer="llmcompressor"),
    Row("autoround-int4-sym-g64", "int4-sym-g64", "learned", {**GRID, "iters": 200, "batch_size": 1}, peer="auto-round"),
    Row("autoround-rtn-int4-sym-g64", "int4-sym-g64", "rtn", {**GRID, "iters": 0, "batch_size": 1}, peer="auto-round"),
    Row("bitsandbytes-nf4", "nf4", "absmax", {"quant_type": "nf4"}, calibrated=False, peer="bitsandbytes"),
    Row("bitsandbytes-fp4", "fp4", "absmax", {"quant_type": "fp4"}, calibrated=False, peer="bitsandbytes"),
]
